"""Small versions of the scale benchmark: memory that would not fit at ten million rows already shows here."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks import scale

PLAN = """
import sys
from data_pipeline.build.planner import make_plan
from data_pipeline.build.config import ShardsConfig
from data_pipeline.store.open import open_store
from tests.benchmarks.scale import peak_mb
config = ShardsConfig(source=sys.argv[1], output=sys.argv[2], unit_rows=64)
make_plan(config, "none", open_store(config.output))
print(peak_mb())
"""


def planning_peak_mb(folder: Path, rows: int) -> float:
    """Largest resident memory of a process that plans a manifest with captions of 1500 random characters."""
    random_bytes = random.Random(rows).randbytes
    table = pa.table(
        {
            "video": [f"s3://bucket/{number}.mp4" for number in range(rows)],
            "caption": [base64.b64encode(random_bytes(1125)).decode() for _ in range(rows)],
        }
    )
    pq.write_table(table, folder / f"{rows}.parquet", row_group_size=rows)  # one row group: the reader's worst case
    del table
    command = [sys.executable, "-c", PLAN, str(folder / f"{rows}.parquet"), str(folder / str(rows))]
    done = subprocess.run(command, cwd=scale.ROOT, capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout.split()[-1])  # the lines before it say what the columns are taken for


@pytest.mark.slow
def test_planning_takes_the_same_memory_for_twice_the_rows(tmp_path: Path) -> None:
    """Its peak rises up to some 60 000 rows, the size of its buffers, and varies by 20 MB from run to run."""
    few, many = planning_peak_mb(tmp_path, 80_000), planning_peak_mb(tmp_path, 160_000)
    assert many - few < 60, "80 000 rows more, which are 120 MB"
    assert many < 450


@pytest.mark.slow
def test_a_driver_stays_small_and_flat_and_counts_every_row(tmp_path: Path) -> None:
    rows = 100_000
    scale.write_manifest(tmp_path / "manifest.parquet", rows)
    driver = scale.Watched(scale.drive_command(tmp_path / "manifest.parquet", tmp_path / "dataset", 1000, 2)).run()
    scale.check(tmp_path / "dataset", rows)
    assert driver.peak_mb < 500
    assert driver.growth() < 30
