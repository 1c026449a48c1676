"""Puts the samples of a unit into shards of bounded size: the order of their members, and the place of every sample."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.tar import BLOCK, TarWriter, encoded, end_bytes, padded
from data_pipeline.dataset.units import shard_key
from data_pipeline.store.base import Store


@dataclass(frozen=True, kw_only=True)
class SamplePlace:
    """Where a sample lies: the columns of its index row that follow from its bytes."""

    shard: int  # position in the unit's list of shards
    offset: int  # of the first tar header
    size: int  # all members with headers and padding
    video_offset: int  # the payload's own bytes
    video_size: int
    crc32: int  # of the `size` bytes at `offset`


class ShardWriter:
    """Writes the shards of one unit. A full shard is uploaded and its local file removed.

    Args:
        unit: number of the unit, which is in the shards' names.
        shard_bytes: a shard is closed before it grows beyond this.
        store: of the dataset.
        scratch: an empty local folder.
        payload: suffix of the member that a sample is about, as the dataset's kind has it.

    Attributes:
        shards: entries of the uploaded shards.
    """

    def __init__(self, unit: int, shard_bytes: int, store: Store, scratch: Path, payload: str) -> None:
        self.shards: list[ShardEntry] = []
        self._unit, self._limit, self._store, self._scratch = unit, shard_bytes, store, scratch
        self._payload = payload
        self._writer: TarWriter | None = None
        self._splits: Counter[str] = Counter()

    def add(self, key: str, split: str, *, description: bytes, payload: bytes, caption: bytes) -> SamplePlace:
        """Append one sample: `<key>.json`, `<key><payload>` and `<key>.txt`, in this order."""
        members = [(f"{key}.json", description), (f"{key}{self._payload}", payload), (f"{key}.txt", caption)]
        data = encoded(members)
        offset = self.append(data, split)
        return SamplePlace(
            shard=len(self.shards),
            offset=offset,
            size=len(data),
            video_offset=offset + BLOCK + padded(len(description)) + BLOCK,
            video_size=len(payload),
            crc32=zlib.crc32(data),
        )

    def append(self, data: bytes, split: str) -> int:
        """Append the encoded members of one sample and return their place in the shard `len(self.shards)`."""
        if self._writer and self._writer.bytes + len(data) + end_bytes() > self._limit:
            self.close()
        if self._writer is None:
            self._writer = TarWriter(self._scratch / f"shard-{len(self.shards):03d}.tar")
        self._splits[split] += 1
        return self._writer.append(data)

    def close(self) -> None:
        """Finish and upload the open shard, if there is one."""
        if self._writer is None:
            return
        digest = self._writer.close()
        name = shard_key(self._unit, len(self.shards))
        self._store.write_file(name, self._writer.path)
        self._writer.path.unlink()
        self.shards.append(
            ShardEntry(
                name=name,
                bytes=self._writer.bytes,
                sha256=digest,
                samples=self._splits.total(),
                splits=dict(self._splits),
            )
        )
        self._writer, self._splits = None, Counter()
