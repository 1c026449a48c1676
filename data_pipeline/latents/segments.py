"""The plan of a dataset of latents: one segment and one unit for each source shard, one row for each of its clips.

A row has the columns of PLAN_SCHEMA: `id` is the clip's key, `video` the key of the shard that holds it, and `extra` a
JSON object with the rest of what the index of the clips says, so that a worker needs no other index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_pipeline.dataset.plan import Plan, Segment
from data_pipeline.dataset.plan_parts import PLAN_SCHEMA
from data_pipeline.dataset.plan_rows import PlanRow, write_parts
from data_pipeline.dataset.row_tables import RowsDigest, digest_tables
from data_pipeline.dataset.units import done_ahead
from data_pipeline.latents.source import ClipsSource
from data_pipeline.outside.documents import parse_json_object
from data_pipeline.store.base import Store

SHARD = "shard"
"""Kind of the segments."""
_EXTRA = ("offset", "size", "crc32", "frames", "height", "width", "phash")
_FURTHER = frozenset(_EXTRA)


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
    further = _further(row.extra, row.row)
    return PlannedClip(key=row.id, start=row.start, end=row.end, label=row.label, split=row.split, **further)


def planned_crc32(extra: str, row: int) -> int:
    """The checksum of the clip's sample that a row of the plan names. Raises: ValueError with the row."""
    found: int = _further(extra, row)["crc32"]
    return found


def _further(extra: str, row: int) -> dict[str, Any]:
    """The fields of a planned clip that lie in the plan's column `extra`."""
    try:
        further = parse_json_object(extra)
        if further.keys() != _FURTHER:
            raise ValueError(f"it has the fields {', '.join(further)}"[:200])
        if type(further["crc32"]) is not int:
            raise ValueError("its crc32 is no number")
    except ValueError as error:
        raise ValueError(f"row {row} of the plan stands for no clip ({error}); restore plan/ from a copy") from error
    return further


def next_segment(segments: Sequence[Segment], shard: str, sha256: str, clips: pa.Table) -> tuple[Segment, pa.Table]:
    """The segment that follows `segments`, and its rows with the columns of PLAN_SCHEMA.

    Args:
        segments: of the plan so far.
        shard: key of the source shard.
        sha256: of the source shard.
        clips: of this shard, in its order, with at least the fields of PlannedClip as columns.
    """
    last = segments[-1] if segments else None
    first_row = last.first_row + last.rows if last else 1
    count = clips.num_rows
    extra = clips.select(_EXTRA).to_pylist()
    columns = {
        "row": pa.array(range(first_row, first_row + count), pa.int64()),
        "id": clips.column("key"),
        "video": pa.array([shard] * count, pa.string()),
        "caption": pa.nulls(count, pa.string()),  # it is read from the shard, as it may be long
        "start": clips.column("start"),
        "end": clips.column("end"),
        "label": clips.column("label"),
        "split": clips.column("split"),
        "extra": pa.array([json.dumps(values) for values in extra], pa.string()),
        "duplicate_of": pa.nulls(count, pa.int64()),
        "retry_of": pa.array([""] * count, pa.string()),
    }
    rows = pa.Table.from_pydict(columns).cast(PLAN_SCHEMA)
    digest = RowsDigest()
    for table in digest_tables(rows.to_batches()):
        digest.add(table)
    segment = Segment(
        kind=SHARD,
        parent=len(segments),
        name=shard,
        # The position is in it, because a clip that was tried again or has come back gives the same row once more.
        digest=hashlib.sha256(f"{len(segments)} {digest.hexdigest()}".encode()).hexdigest(),
        file_sha256=sha256,
        rows=count,
        duplicates=0,
        first_row=first_row,
        first_unit=last.first_unit + last.units if last else 0,
        cuts=(),
    )
    return segment, rows


def withdrawn(segment: Segment) -> Segment:
    """The segment without rows, for a source shard that was replaced before its clips were encoded.

    The numbers of later units and rows stay. Its unit is committed without samples.
    """
    return Segment(
        kind=SHARD,
        parent=segment.parent,
        name=segment.name,
        digest="",
        file_sha256="",
        rows=0,
        duplicates=0,
        first_row=segment.first_row + segment.rows,
        first_unit=segment.first_unit,
        cuts=(),
    )


def write_segment(store: Store, segment: Segment, rows: pa.Table) -> None:
    """Write the part file of a segment. Same rows, same bytes."""
    write_parts(store, segment, iter(rows.combine_chunks().to_batches()))


def add_segments(
    store: Store, segments: list[Segment], source: ClipsSource, tables: Iterable[tuple[int, pa.Table]]
) -> None:
    """Append a segment for each table of clips, and write its part file.

    Args:
        store: of the latents.
        segments: of the plan so far; the new ones are appended.
        tables: position of a shard in the source, and index rows of some of its clips.
    """

    def planned() -> Iterator[tuple[Segment, pa.Table]]:
        for shard, clips in tables:
            entry = source.description.shards[shard]
            segment, rows = next_segment(segments, entry.name, entry.sha256, clips)
            segments.append(segment)
            yield segment, rows

    for _ in done_ahead(planned(), lambda pair: write_segment(store, *pair)):
        pass


def with_segments(plan: Plan, segments: Sequence[Segment]) -> Plan:
    """The plan with these segments in place of its own."""
    return Plan(encoder=plan.encoder, settings=plan.settings, segments=tuple(segments))
