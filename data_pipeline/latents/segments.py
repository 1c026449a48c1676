"""The plan of a dataset of latents: one segment and one unit for each source shard, one row for each of its clips.

A row has the columns of PLAN_SCHEMA: `id` is the clip's key, `video` the key of the shard that holds it, and `extra` a
JSON object with the rest of what the index of the clips says, so that a worker needs no other index.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.plan import (
    DIGEST_ROWS,
    PLAN_SCHEMA,
    Dataset,
    PlanRow,
    RowsDigest,
    Segment,
    rechunked,
    write_parts,
)

SHARD = "shard"
"""Kind of the segments."""
_EXTRA = ("offset", "size", "crc32", "frames", "height", "width", "phash")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedClip:
    """One clip of a source shard, with columns of its index."""

    key: str
    offset: int  # of the sample's first tar header
    size: int  # all members with headers and padding
    crc32: int  # of the `size` bytes at `offset`
    frames: int
    height: int
    width: int
    start: float  # seconds in the source of the clip
    end: float
    label: str
    split: str
    phash: int


def planned_clip(row: PlanRow) -> PlannedClip:
    """The clip that a row of the plan stands for."""
    assert row.start is not None
    assert row.end is not None
    return PlannedClip(
        key=row.id, start=row.start, end=row.end, label=row.label, split=row.split, **json.loads(row.extra)
    )


def add_segment(dataset: Dataset, shard: str, sha256: str, clips: Sequence[PlannedClip]) -> Dataset:
    """Write the part file of one more segment and return the dataset with the grown plan, which is not written.

    Args:
        shard: key of the source shard.
        sha256: of the source shard.
        clips: of this shard, in its order; at least one.
    """
    assert clips, "a segment without clips would be a unit without rows"
    segment, batch = _segment(dataset, shard, sha256, clips)
    write_parts(dataset.store, segment, iter([batch]))
    return replace(dataset, plan=dataset.plan.grown(segment))


def _segment(dataset: Dataset, shard: str, sha256: str, clips: Sequence[PlannedClip]) -> tuple[Segment, pa.RecordBatch]:
    plan = dataset.plan
    first_row = max((segment.first_row + segment.rows for segment in plan.segments), default=1)
    rows = [
        {
            "row": first_row + position,
            "id": clip.key,
            "video": shard,
            "caption": None,  # it is read from the shard, as it may be long
            "start": clip.start,
            "end": clip.end,
            "label": clip.label,
            "split": clip.split,
            "extra": canonical_json({name: value for name, value in asdict(clip).items() if name in _EXTRA}).decode(),
            "duplicate_of": None,
            "retry_of": "",
        }
        for position, clip in enumerate(clips)
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=PLAN_SCHEMA)
    digest = RowsDigest()
    for table in rechunked(iter([batch]), DIGEST_ROWS):
        digest.add(table)
    return (
        Segment(
            kind=SHARD,
            parent=len(plan.segments),
            name=shard,
            digest=digest.hexdigest(),
            file_sha256=sha256,
            rows=len(clips),
            duplicates=0,
            first_row=first_row,
            unit_rows=len(clips),
            first_unit=plan.units,
            units=1,
        ),
        batch,
    )
