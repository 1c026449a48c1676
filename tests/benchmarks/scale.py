"""Ten million rows through the real planner, Ray builder, commit and finalisation, with made-up clips.

    python -m tests.benchmarks.scale --rows 10000000 --folder /tmp/scale

Writes a manifest, builds it, kills the driver with SIGKILL part-way, starts the same build again, finalises once more
alone, and searches the result for near-duplicates. Prints what each step took in seconds and memory beside its limit,
as text and as JSON. Takes half an hour and 6 GB of disk for ten million rows on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.dataset.near_duplicates import drop_near_duplicates
from data_pipeline.dataset.plan import Dataset
from data_pipeline.store.open import open_store
from tests.benchmarks import scale_unit
from tests.data_pipeline.build import stub

ROOT = Path(__file__).parents[2]
LIMITS = {
    "driver peak MB": 1000.0,
    "restart s": 60.0,
    "finalisation peak MB": 2000.0,
    "near-duplicates peak MB": 2000.0,
}
_COMMAND = [sys.executable, "-m", "tests.benchmarks.scale"]
_BATCH = 65_536
_WORDS = "a the man woman dog car street river child plays runs jumps turns slowly quickly red blue green night day"
_SAMPLE_S = 0.1
_PROGRESS = re.compile(r"units (\d+)/(\d+)  rows (\d+)/(\d+)")


def write_manifest(path: Path, rows: int, seed: int = 7) -> None:
    """A Parquet manifest of `rows` captioned videos on S3 that do not exist, in constant memory."""
    batches = manifest_batches(rows, seed)
    first = next(batches)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def manifest_batches(rows: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Columns video and caption (about 100 characters)."""
    random = np.random.default_rng(seed)
    words = np.array(_WORDS.split(), dtype=object)
    phrases = pa.array([" ".join(words[random.integers(0, len(words), 14)]) for _ in range(4096)])
    for first in range(0, rows, _BATCH):
        count = min(_BATCH, rows - first)
        number = pc.cast(pa.array(np.arange(first, first + count)), pa.string())
        name = pa.array([f"{value:016x}" for value in random.integers(0, 2**63, count).tolist()])
        video = pc.binary_join_element_wise(
            "s3://some-videos/", pc.utf8_slice_codeunits(name, 0, 2), "/", name, "-", number, ".mp4", ""
        )
        caption = pc.binary_join_element_wise(phrases.take(pa.array(random.integers(0, 4096, count))), number, " ")
        yield pa.record_batch([video, caption], names=["video", "caption"])


@dataclass
class Watched:
    """One driver process: its memory over time, its progress, and when what happened (seconds since its start)."""

    command: list[str]
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, resident MB
    planned_s: float = 0.0  # the plan was there
    first_unit_s: float = 0.0  # a unit of this run was committed
    built_s: float = 0.0  # the last one was
    end_s: float = 0.0
    rows: int = 0  # committed by this run
    peak_mb: float = 0.0  # as the kernel saw it, when the process ended by itself
    log: list[str] = field(default_factory=list)

    def run(self, kill_at: float | None = None) -> Watched:
        """Wait for the end, or kill the process group once this share of all units is committed."""
        began = time.monotonic()
        process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        watcher = threading.Thread(target=self._watch_memory, args=(process, began), daemon=True)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            self.log.append(line)
            clock = time.monotonic() - began
            if line.startswith(("planned:", "resuming:")):
                self.planned_s = clock
            elif match := _PROGRESS.search(line):
                units, all_units, self.rows, todo = map(int, match.groups())
                self.first_unit_s = self.first_unit_s or (clock if self.rows else 0.0)
                self.built_s = self.built_s or (clock if self.rows == todo else 0.0)
                if kill_at is not None and units >= kill_at * all_units:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            elif line.startswith("peak_mb "):
                self.peak_mb = float(line.split()[1])
        status = process.wait()
        watcher.join()
        self.end_s = time.monotonic() - began
        if status != (0 if kill_at is None else -signal.SIGKILL):
            raise RuntimeError(f"driver ended with {status}:\n{''.join(self.log[-30:])}")
        return self

    def _watch_memory(self, process: subprocess.Popen[str], began: float) -> None:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                self.memory.append((time.monotonic() - began, watched.memory_info().rss / 1e6))
            except psutil.NoSuchProcess:
                return
            time.sleep(_SAMPLE_S)

    def highest(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """Largest resident MB between two times."""
        return max((mb for clock, mb in self.memory if begin <= clock <= end), default=0.0)

    def growth(self) -> float:
        """MB by which the last tenth of the work lies above the first tenth: zero means flat."""
        tenth = (self.built_s - self.first_unit_s) / 10
        first = [mb for clock, mb in self.memory if 0 <= clock - self.first_unit_s <= tenth]
        last = [mb for clock, mb in self.memory if 0 <= self.built_s - clock <= tenth]
        return float(np.median(last) - np.median(first)) if first and last else 0.0


def measure(rows: int, unit_rows: int, folder: Path, *, cpus: int = 2, kill_at: float = 0.4) -> dict[str, float]:
    """All steps in an empty folder; see the module's text. Raises: RuntimeError when a result is wrong."""
    manifest, output = folder / "manifest.parquet", folder / "dataset"
    began = time.monotonic()
    write_manifest(manifest, rows)
    figures = _said(
        {"rows": float(rows), "units": float(-(-rows // unit_rows)), "manifest s": time.monotonic() - began}
    )
    command = drive_command(manifest, output, unit_rows, cpus)
    killed = Watched(command).run(kill_at)
    figures |= _said(
        {
            "plan s": killed.planned_s,
            "plan s per million rows": killed.planned_s / rows * 1e6,
            "plan peak MB": killed.highest(end=killed.planned_s),
        }
    )
    resumed = Watched(command).run()
    check(output, rows)
    work_s = (killed.end_s - killed.first_unit_s) + (resumed.built_s - resumed.first_unit_s)
    figures |= _said(
        {
            "restart s": resumed.first_unit_s,
            "work s per million rows": work_s / (killed.rows + resumed.rows) * 1e6,
            "driver peak MB": max(killed.highest(), resumed.highest(end=resumed.built_s)),
            "driver MB while working": resumed.highest(resumed.first_unit_s, resumed.built_s),
            "driver growth MB": resumed.growth(),
            "finalisation s": resumed.end_s - resumed.built_s,
            "finalisation s per million rows": (resumed.end_s - resumed.built_s) / rows * 1e6,
        }
    )
    first = _sha256(output / "index.arrow")
    (output / "dataset.json").unlink()
    alone = Watched(command).run()
    check(output, rows)
    if _sha256(output / "index.arrow") != first:
        raise RuntimeError("a second finalisation wrote another index.arrow")
    figures |= _said(
        {
            "finalisation peak MB": max(alone.peak_mb, resumed.highest(resumed.built_s)),
            "finalisation alone s": alone.end_s,
            "plan MB": _megabytes(output, "plan/*"),
            "units MB": _megabytes(output, "units/*"),
            "index.arrow MB": _megabytes(output, "index.arrow"),
            "dataset.json MB": _megabytes(output, "dataset.json"),
        }
    )
    search = Watched([*_COMMAND, "--search", str(output)]).run()
    figures |= _said({"near-duplicates s": search.end_s, "near-duplicates peak MB": search.peak_mb})
    return figures


def drive_command(manifest: Path, output: Path, unit_rows: int, cpus: int) -> list[str]:
    """The driver as a process of its own."""
    return [*_COMMAND, "--drive", str(manifest), str(output), "--unit-rows", str(unit_rows), "--cpus", str(cpus)]


def _said(figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        limit = f"   limit {LIMITS[name]:,.0f}" if name in LIMITS else ""
        print(f"{name:<34}{value:>14,.1f}{limit}", flush=True)
    return figures


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(output: Path, pattern: str) -> float:
    return sum(path.stat().st_size for path in output.glob(pattern)) / 1e6


def check(output: Path, rows: int) -> None:
    """The account in dataset.json against what the made-up unit body did. Raises: RuntimeError."""
    dataset = json.loads((output / "dataset.json").read_text())
    fates = scale_unit.expected_fates(rows)
    expected: dict[str, Any] = {
        "input": rows,
        "committed": fates["committed"],
        "rejected": {"too_short": fates["rejected"]},
        "quarantined": {"missing": fates["quarantined"]},
    }
    if dataset["rows"] != expected or dataset["samples"] != fates["committed"]:
        raise RuntimeError(f"the ledger is {dataset['rows']}, it should be {expected}")


def drive(manifest: str, output: str, unit_rows: int, cpus: int) -> None:
    """The process that is watched and killed."""
    config = ShardsConfig(source=manifest, output=output, unit_rows=unit_rows, run=RunConfig(cpus=cpus, progress_s=0.2))
    result = stub.build(config, scale_unit.run_unit, encoder=scale_unit.ENCODER)
    if result.run.failed:
        raise RuntimeError(f"{len(result.run.failed)} units failed: {next(iter(result.run.failed.values()))}")
    print(f"peak_mb {peak_mb()}", flush=True)


def search(output: str) -> None:
    """The near-duplicate pass of a finalisation up to the point where it would write."""
    store = open_store(output)
    found = drop_near_duplicates(Dataset.open(store), 3, write=False)
    print(f"{found.dropped} of {found.clips} clips")
    print(f"peak_mb {peak_mb()}", flush=True)


def peak_mb() -> float:
    """Largest resident memory of this process so far. (`ru_maxrss` would count what its parent had, too.)"""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--unit-rows", type=int, default=1000)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="empty folder to work in; a temporary one if not given")
    parser.add_argument("--json", type=Path, help="where the figures go as JSON")
    parser.add_argument("--drive", nargs=2, metavar=("MANIFEST", "OUTPUT"), help=argparse.SUPPRESS)
    parser.add_argument("--search", metavar="OUTPUT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(*arguments.drive, arguments.unit_rows, arguments.cpus)
        return
    if arguments.search:
        search(arguments.search)
        return
    folder = Path(tempfile.mkdtemp(prefix="vidtwin-scale-", dir=arguments.folder))
    try:
        figures = measure(arguments.rows, arguments.unit_rows, folder, cpus=arguments.cpus)
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
