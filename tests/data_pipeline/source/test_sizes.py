"""Parquet is measured and read within the memory of a few rows."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.source.sizes import parquet_batches
from tests.tools.memory_limit import memory_limit

ROWS, TEXT = 40_000, 500


def write_one_group(file: Path) -> pa.Table:
    """20 MB of texts, no two alike, in one row group, with a column of few texts and one of lists."""
    randoms = random.Random(0)
    table = pa.table(
        {
            "caption": [base64.b64encode(randoms.randbytes(TEXT * 3 // 4)).decode() for _ in range(ROWS)],
            "label": [f"class {number % 7}" for number in range(ROWS)],
            "kinds": [["a", "b"][: number % 3] for number in range(ROWS)],
            "number": range(ROWS),
        }
    )
    pq.write_table(table, file, row_group_size=ROWS)
    return table


def test_a_large_row_group_takes_the_memory_of_its_batches(tmp_path: Path) -> None:
    table = write_one_group(tmp_path / "m.parquet")
    held = table.nbytes
    assert held > ROWS * TEXT
    before, most = pa.total_allocated_bytes(), 0
    for batch in parquet_batches(tmp_path / "m.parquet", "m.parquet", 1024):
        most = max(most, pa.total_allocated_bytes() - before)
        assert batch.num_rows <= 1024
    assert most < held / 2


@pytest.mark.parametrize("group", [1, 300, 1024, 5000])
def test_batches_are_the_rows_of_the_file_whatever_its_row_groups(group: int, tmp_path: Path) -> None:
    table = write_one_group(tmp_path / "m.parquet").slice(0, 5000)
    file = tmp_path / "groups.parquet"
    pq.write_table(table.slice(0, 3000) if group == 1 else table, file, row_group_size=group)
    wanted = pq.read_table(file)
    batches = list(parquet_batches(file, "groups.parquet", 1024))
    assert [batch.num_rows for batch in batches] == [1024] * (len(wanted) // 1024) + [len(wanted) % 1024]
    assert pa.Table.from_batches(batches).equals(wanted.replace_schema_metadata(None))


def test_one_long_text_among_short_ones_is_read(tmp_path: Path) -> None:
    """8192 rows of the longest text would be too large, and these are not."""
    table = pa.table({"caption": ["a" * 2**20, *(["b"] * 10_000)]})
    pq.write_table(table, tmp_path / "m.parquet")
    batches = list(parquet_batches(tmp_path / "m.parquet", "m.parquet", 8192))
    assert [batch.num_rows for batch in batches] == [8192, 1809]
    assert pa.Table.from_batches(batches).equals(table)


def test_bytes_that_all_rows_share_are_measured_before_each_has_them(tmp_path: Path) -> None:
    """As texts are: 8192 rows of the same 4 MB, read in a process that may grow by half a gigabyte."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), pa.array([b"a" * 2**22]))
    table = pa.table({"video": ["a.mp4"] * 8192, "x": shared})
    pq.write_table(table, tmp_path / "m.parquet", compression="zstd", store_schema=False)
    with memory_limit(2**29), pytest.raises(ValueError, match="column 'x' holds 34"):
        list(parquet_batches(tmp_path / "m.parquet", "m.parquet", 8192))
