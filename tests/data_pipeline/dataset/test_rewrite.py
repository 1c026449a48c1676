"""A committed unit that is written anew: the names of its shards, and the samples that stay."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.dataset.index import INDEX_SCHEMA, IndexRow, index_rows, read_unit_index, unit_index
from data_pipeline.dataset.records import CommitRecord
from data_pipeline.dataset.rewrite import rewrite_unit
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.shard_writer import ShardWriter
from data_pipeline.dataset.units import CommittedUnit, index_entry, read_record
from data_pipeline.store.local import LocalStore


def unit_of_two_shards(store: LocalStore, names: tuple[str, str], folder: Path) -> CommittedUnit:
    """Two samples in the first shard and one in the second; sample k is of row k."""
    writer = ShardWriter(0, 7000, store, folder, ".mp4")
    samples = []
    for row, size in ((1, 10), (2, 10), (3, 2000)):
        place = writer.add(f"k{row}", "train", description=b"{}", payload=bytes(size), caption=b"")
        values: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA.names, 0) | asdict(place)
        values |= {"key": f"k{row}", "row": row, "split": "train", "source": f"s{row}", "label": ""}
        samples.append(IndexRow(**values))
    writer.close()
    assert [entry.samples for entry in writer.shards] == [2, 1]
    for entry, name in zip(writer.shards, names, strict=True):
        if name != entry.name:
            store.write(name, store.read(entry.name))
            store.delete(entry.name)
    index = unit_index(samples)
    store.write("units/000000.arrow", index)
    record = CommitRecord(
        unit=0,
        inputs="",
        encoder="",
        shards=tuple(replace(entry, name=name) for entry, name in zip(writer.shards, names, strict=True)),
        index=index_entry("units/000000.arrow", index),
        rows=tuple(RowFate(row=row, id=f"s{row}", fate="committed", clips=1) for row in (1, 2, 3)),
    )
    return CommittedUnit(0, record, record.to_bytes(), read_unit_index(index))


def test_a_new_shard_takes_the_name_of_no_other_one_also_from_the_thousandth_on(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "scratch").mkdir()
    unit = unit_of_two_shards(store, ("shards/000000-999.tar", "shards/000000-1000.tar"), tmp_path / "scratch")
    untouched = store.read("shards/000000-1000.tar")
    rewrite_unit(store, unit, lambda sample: sample.row == 1, unit.record.rows, tmp_path / "scratch")
    record = read_record(store, 0)
    assert [shard.name for shard in record.shards] == ["shards/000000-1001.tar", "shards/000000-1000.tar"]
    assert store.read("shards/000000-1000.tar") == untouched
    assert sorted(store.keys("shards/")) == ["shards/000000-1000.tar", "shards/000000-1001.tar"]
    left = index_rows(read_unit_index(store.read(record.index.name)))
    assert [(sample.key, sample.shard) for sample in left] == [("k2", 0), ("k3", 1)]


def test_a_sample_of_a_shard_that_the_record_does_not_have_is_not_lost(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "scratch").mkdir()
    unit = unit_of_two_shards(store, ("shards/000000-000.tar", "shards/000000-001.tar"), tmp_path / "scratch")
    samples = index_rows(unit.index)
    samples[2].shard = 7
    unit = replace(unit, index=read_unit_index(unit_index(samples)))
    with pytest.raises(ValueError, match="unit 0: sample k3 is in shard 7, the record has 2; run launch/verify_shards"):
        rewrite_unit(store, unit, lambda sample: sample.row == 1, unit.record.rows, tmp_path / "scratch")
