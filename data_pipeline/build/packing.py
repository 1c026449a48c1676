"""Puts clips into shards: their keys, the order of their members, and the place of every clip."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.cut.result import EncodedClip
from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.index import IndexRow
from data_pipeline.dataset.kind import CLIPS
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.shard_writer import ShardWriter
from data_pipeline.store.base import Store


def sample_key(identity: str, clip: int) -> str:
    """Key of a clip, readable and unique. It has no dot and no slash: WebDataset reads them as extension and folder."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", identity).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{clip:04d}".lstrip("-")


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats rounded to a millionth, so that no stored number depends on the last bit of a computation."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


class Packer:
    """Puts the clips of a unit into shards of bounded size and uploads each full shard.

    Attributes:
        samples: index rows of all clips added so far.
    """

    def __init__(self, unit: int, shard_bytes: int, store: Store, scratch: Path) -> None:
        self._writer = ShardWriter(unit, shard_bytes, store, scratch, CLIPS.payload)
        self.samples: list[IndexRow] = []

    def add(self, clip: EncodedClip, row: PlanRow, split: str, description: dict[str, Any]) -> None:
        """Append one clip with its caption and description."""
        key = sample_key(row.id, clip.number)
        place = self._writer.add(
            key,
            split,
            description=canonical_json(description),
            payload=clip.data,
            caption=(row.caption or "").encode(),
        )
        self.samples.append(
            IndexRow(
                key=key,
                **asdict(place),
                frames=clip.frames,
                height=clip.height,
                width=clip.width,
                split=split,
                source=row.id,
                label=row.label,
                row=row.row,
                clip=clip.number,
                start=round(clip.start, 6),
                end=round(clip.end, 6),
                phash=int(clip.phash, 16),
            )
        )

    @property
    def shards(self) -> list[ShardEntry]:
        """Entries of the uploaded shards."""
        return self._writer.shards

    def close(self) -> None:
        """Finish and upload the open shard, if there is one."""
        self._writer.close()
