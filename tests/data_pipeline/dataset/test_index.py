"""Merging unit indexes: shard numbers count on, order is kept, memory is bounded by the batch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_pipeline.dataset import index
from data_pipeline.dataset.index import INDEX_SCHEMA, IndexRow, index_rows, merge, read_unit_index, unit_index


def sample(key: str, shard: int, offset: int) -> IndexRow:
    values: dict[str, Any] = {name: 0 for name in INDEX_SCHEMA.names}
    values |= {"key": key, "shard": shard, "offset": offset, "split": "train", "source": "s", "label": ""}
    return IndexRow(**values)


def test_the_global_index_is_the_units_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_BATCH_ROWS", 3)
    units = [
        [sample("a", 0, 0), sample("b", 0, 512), sample("c", 1, 0)],
        [],
        [sample("d", 0, 0)],
        [sample("e", 0, 0), sample("f", 2, 0)],
    ]
    shards_before = [0, 2, 2, 3]
    tables = [(read_unit_index(unit_index(unit)), before) for unit, before in zip(units, shards_before, strict=True)]
    written = merge(iter(tables), tmp_path / "index.arrow")
    data = (tmp_path / "index.arrow").read_bytes()
    assert (written.samples, written.bytes, written.sha256) == (6, len(data), hashlib.sha256(data).hexdigest())
    with pa.memory_map(str(tmp_path / "index.arrow")) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches > 1
        table = reader.read_all()
        assert table.schema == INDEX_SCHEMA
        assert table["key"].to_pylist() == list("abcdef")
        assert table["shard"].to_pylist() == [0, 0, 1, 2, 3, 5]


def test_an_index_without_samples_can_be_read(tmp_path: Path) -> None:
    merge(iter([(read_unit_index(unit_index([])), 0)]), tmp_path / "index.arrow")
    assert pa.ipc.open_file(str(tmp_path / "index.arrow")).read_all().num_rows == 0


def test_a_damaged_unit_index_is_an_error() -> None:
    data = unit_index([sample("a", 0, 0)])
    with pytest.raises(ValueError, match="damaged"):
        read_unit_index(data[: len(data) // 2])


def test_the_rows_of_an_index_are_those_written() -> None:
    written = [sample("a", 0, 0), sample("b", 1, 512)]
    assert index_rows(read_unit_index(unit_index(written))) == written
