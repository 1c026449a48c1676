"""Writes a committed unit anew without some of its samples, or with other texts in them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.dataset.index import SampleRow, index_rows, unit_index
from data_pipeline.dataset.kind import CLIPS, Kind
from data_pipeline.dataset.latent_records import UnitLatents
from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.tar import BLOCK, TarWriter, encoded, padded, parse_members
from data_pipeline.dataset.units import (
    CommittedUnit,
    index_entry,
    number_of_shard,
    shard_key,
    unit_index_key,
    unit_key,
)
from data_pipeline.outside.regular import open_regular
from data_pipeline.store.base import Store


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """New texts of a sample. Its payload stays, byte for byte."""

    describe: Callable[[bytes], bytes]  # the new `.json`, from the bytes of the old one
    caption: bytes
    values: Mapping[str, Any] = field(default_factory=dict)  # field of the index row -> new value


def rewrite_unit(
    store: Store,
    unit: CommittedUnit,
    left_out: Callable[[Any], bool],
    rows: Sequence[RowFate],
    folder: Path,
    *,
    kind: Kind = CLIPS,
    renewed: Mapping[str, Renewal] | None = None,
    latents: UnitLatents | None = None,
) -> None:
    """Commit a unit anew with fewer or other samples. New files get new names; the record changes last, in one step.

    Args:
        left_out: whether a sample is left out, by its row of the index, which is of the kind's type.
        rows: the unit's new entries in the commit record.
        folder: an empty local folder.
        kind: of the dataset.
        renewed: key of a sample -> its new texts.
        latents: what the new record says of a unit of latents.
    Raises:
        ValueError: a shard is damaged, or the index names a shard that the record does not have.
    """
    old, texts = unit.record, renewed or {}
    kept: list[list[SampleRow]] = [[] for _ in old.shards]
    for sample in index_rows(unit.index, kind.row):
        if not 0 <= sample.shard < len(kept):
            raise ValueError(
                f"unit {unit.unit}: sample {sample.key} is in shard {sample.shard}, the record has {len(kept)}; run "
                "launch/verify_shards.py first"
            )
        if not left_out(sample):
            kept[sample.shard].append(sample)
    free = 1 + max((number_of_shard(shard.name) for shard in old.shards), default=-1)  # number of the next new shard
    shards: list[ShardEntry] = []
    replaced: list[str] = []
    for shard, inside in zip(old.shards, kept, strict=True):
        if len(inside) == shard.samples and not any(sample.key in texts for sample in inside):
            shards.append(shard)
        else:
            replaced.append(shard.name)
            if inside:
                shards.append(_copy(store, shard.name, shard_key(unit.unit, free), inside, texts, kind, folder))
                free += 1
        for sample in inside:
            sample.shard = len(shards) - 1
    data = unit_index([sample for inside in kept for sample in inside], kind.schema)
    entry = index_entry("", data)
    entry = replace(entry, name=unit_index_key(unit.unit, entry.sha256))
    store.write(entry.name, data)
    record = replace(old, shards=tuple(shards), rows=tuple(rows), index=entry, latents=latents)
    store.write(unit_key(unit.unit), record.to_bytes())
    for key in (*replaced, *({old.index.name} - {entry.name})):
        store.delete(key)


def _copy(
    store: Store,
    old: str,
    new: str,
    samples: list[SampleRow],
    renewed: Mapping[str, Renewal],
    kind: Kind,
    folder: Path,
) -> ShardEntry:
    """Copy some samples of a shard to a new shard and set their new places. Raises: ValueError for damage."""
    source, target = folder / "old.tar", folder / "new.tar"
    store.read_to_file(old, source)
    writer = TarWriter(target)
    with open_regular(source) as file:
        for sample in samples:
            file.seek(sample.offset)
            data = file.read(sample.size)
            if zlib.crc32(data) != sample.crc32:
                raise ValueError(f"{old}: sample {sample.key} is damaged; run launch/verify_shards.py first")
            if sample.key in renewed:
                data = _renew(sample, data, renewed[sample.key], kind)
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


def _renew(sample: SampleRow, data: bytes, renewal: Renewal, kind: Kind) -> bytes:
    """The bytes of a sample with new texts. The row gets the values that follow from them."""
    members = parse_members(data, sample.key)
    description = renewal.describe(members["json"])
    payload = members[kind.payload.removeprefix(".")]
    names = (".json", kind.payload, ".txt")
    contents = (description, payload, renewal.caption)
    new = encoded([(f"{sample.key}{name}", content) for name, content in zip(names, contents, strict=True)])
    sample.size, sample.crc32 = len(new), zlib.crc32(new)
    sample.video_offset = sample.offset + BLOCK + padded(len(description)) + BLOCK
    for name, value in renewal.values.items():
        setattr(sample, name, value)
    return new
