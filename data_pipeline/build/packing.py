"""Puts samples into shards: their keys, the order of their members, and the place of every sample."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from data_pipeline.cut.result import EncodedClip
from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.index import IndexRow
from data_pipeline.dataset.plan import PlanRow
from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.tar import BLOCK, TarWriter, encoded, end_bytes, padded
from data_pipeline.dataset.units import shard_key
from data_pipeline.store.base import Store


def sample_key(identity: str, clip: int) -> str:
    """Key of a clip, readable and unique. It has no dot and no slash: WebDataset reads them as extension and folder."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", identity).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{clip:04d}".lstrip("-")


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats rounded to a millionth, so that no stored number depends on the last bit of a computation."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


class Packer:
    """Puts the samples of a unit into shards of bounded size and uploads each full shard.

    Attributes:
        shards: entries of the uploaded shards.
        samples: index rows of all samples added so far.
    """

    def __init__(self, unit: int, shard_bytes: int, store: Store, scratch: Path) -> None:
        self.shards: list[ShardEntry] = []
        self.samples: list[IndexRow] = []
        self._unit, self._limit, self._store, self._scratch = unit, shard_bytes, store, scratch
        self._writer: TarWriter | None = None
        self._splits: Counter[str] = Counter()

    def add(self, clip: EncodedClip, row: PlanRow, split: str, description: dict[str, Any]) -> None:
        """Append one clip with its caption and description."""
        key = sample_key(row.id, clip.number)
        files = [
            (f"{key}.json", canonical_json(description)),
            (f"{key}.mp4", clip.data),
            (f"{key}.txt", (row.caption or "").encode()),
        ]
        data = encoded(files)
        if self._writer and self._writer.bytes + len(data) + end_bytes() > self._limit:
            self.close()
        if self._writer is None:
            self._writer = TarWriter(self._scratch / f"shard-{len(self.shards):03d}.tar")
        offset = self._writer.append(data)
        video_offset = offset + BLOCK + padded(len(files[0][1])) + BLOCK
        self._splits[split] += 1
        self.samples.append(
            IndexRow(
                key=key,
                shard=len(self.shards),
                offset=offset,
                size=len(data),
                video_offset=video_offset,
                video_size=len(clip.data),
                frames=clip.frames,
                height=clip.height,
                width=clip.width,
                split=split,
                source=row.id,
                label=row.label,
                crc32=zlib.crc32(data),
                row=row.row,
                clip=clip.number,
                start=round(clip.start, 6),
                end=round(clip.end, 6),
                phash=int(clip.phash, 16),
            )
        )

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
