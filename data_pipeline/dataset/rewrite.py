"""Writes a committed unit anew without some of its samples."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.dataset.index import IndexRow, index_rows, unit_index
from data_pipeline.dataset.records import RowFate, ShardEntry
from data_pipeline.dataset.tar import TarWriter
from data_pipeline.dataset.units import CommittedUnit, index_entry, shard_key, unit_index_key, unit_key
from data_pipeline.store.base import Store


def rewrite_unit(
    store: Store,
    unit: CommittedUnit,
    left_out: Callable[[IndexRow], bool],
    rows: Sequence[RowFate],
    folder: Path,
) -> None:
    """Commit a unit anew without some samples. New files get new names; the record changes last and in one step.

    Args:
        left_out: whether a sample is left out.
        rows: the unit's new entries in the commit record.
        folder: an empty local folder.
    Raises:
        ValueError: a shard is damaged.
    """
    old = unit.record
    samples = [sample for sample in index_rows(unit.index) if not left_out(sample)]
    kept = [[sample for sample in samples if sample.shard == number] for number in range(len(old.shards))]
    free = 1 + max((int(shard.name[-7:-4]) for shard in old.shards), default=-1)  # number of the next new shard
    shards: list[ShardEntry] = []
    replaced: list[str] = []
    for shard, inside in zip(old.shards, kept, strict=True):
        if len(inside) == shard.samples:
            shards.append(shard)
        else:
            replaced.append(shard.name)
            if inside:
                shards.append(_copy(store, shard.name, shard_key(unit.unit, free), inside, folder))
                free += 1
        for sample in inside:
            sample.shard = len(shards) - 1
    data = unit_index([sample for inside in kept for sample in inside])
    entry = index_entry("", data)
    entry = replace(entry, name=unit_index_key(unit.unit, entry.sha256))
    store.write(entry.name, data)
    store.write(unit_key(unit.unit), replace(old, shards=tuple(shards), rows=tuple(rows), index=entry).to_bytes())
    for key in (*replaced, old.index.name):
        store.delete(key)


def _copy(store: Store, old: str, new: str, samples: list[IndexRow], folder: Path) -> ShardEntry:
    """Copy some samples of a shard to a new shard and set their new offsets. Raises: ValueError for damage."""
    source, target = folder / "old.tar", folder / "new.tar"
    store.read_to_file(old, source)
    writer = TarWriter(target)
    with source.open("rb") as file:
        for sample in samples:
            file.seek(sample.offset)
            data = file.read(sample.size)
            if zlib.crc32(data) != sample.crc32:
                raise ValueError(f"{old}: sample {sample.key} is damaged; run launch/verify_shards.py first")
            offset = writer.append(data)
            sample.video_offset += offset - sample.offset
            sample.offset = offset
    digest = writer.close()
    store.write_file(new, target)
    return ShardEntry(
        name=new,
        bytes=writer.bytes,
        sha256=digest,
        samples=len(samples),
        splits=dict(Counter(sample.split for sample in samples)),
    )
