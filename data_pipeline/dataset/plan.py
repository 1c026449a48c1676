"""The plan: a manifest cut into numbered work units, fixed once, so that every later run does exactly the same work.

`plan.json` holds the settings, the encoder version and one segment for each manifest (later ones were appended, or are
quarantined rows to try again). The rows themselves lie in `plan/<manifest digest>-<part>.parquet`, normalised.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.source.rows import ROW_SCHEMA
from data_pipeline.store.base import Store

PLAN_KEY = "plan.json"
PART_ROWS = 16_384
"""Rows of one part file at most (but always whole units)."""
DIGEST_ROWS = 8_192
"""Rows hashed together. Part of the digest's definition, so independent of how a file is laid out."""

PLAN_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        pa.field("duplicate_of", pa.int64()),  # with duplicates=merge: the earlier row with this id
        pa.field("retry_of", pa.string(), nullable=False),  # in a retry: the error that row ended with before, else ""
    ]
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The units made from one manifest."""

    kind: str  # "manifest" or "retry"
    parent: int  # position of the segment whose manifest the rows come from; of a manifest: its own
    name: str  # of the manifest file or folder, for messages
    digest: str  # of the normalised rows
    file_sha256: str  # of the manifest file, to recognise it without parsing; "" for a folder
    rows: int
    duplicates: int  # rows merged into an earlier one
    first_row: int  # number of the first row, 1-based over the entire plan; of a retry 0: its rows keep their numbers
    unit_rows: int
    first_unit: int
    units: int

    @property
    def part_units(self) -> int:
        """Units in one part file."""
        return max(1, PART_ROWS // self.unit_rows)

    def part_key(self, part: int) -> str:
        """Key of a part file. Named by content, so that two drivers with different manifests cannot mix."""
        return f"plan/{self.digest[:16]}-{part:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the units of a dataset are. Small: it travels to every worker."""

    encoder: str  # version of everything that decides the bytes of a clip
    settings: dict[str, Any]  # dotted key -> value, see ShardsConfig.plan_settings
    segments: tuple[Segment, ...]

    @property
    def units(self) -> int:
        return sum(segment.units for segment in self.segments)

    @property
    def rows(self) -> int:
        """Source rows; a retry's rows are not counted again."""
        return sum(segment.rows for segment in self.segments if segment.kind == "manifest")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The bytes of plan.json: the same for the same plan."""
        segments = [asdict(segment) for segment in self.segments]
        body = {
            "format": 1,
            "encoder": self.encoder,
            "config": self.settings,
            "config_digest": _digest(self.settings),
            "rows": self.rows,
            "units": self.units,
            "segments": segments,
        }
        return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_json(data: bytes) -> Plan:
        """Raises: ValueError for a plan of another format."""
        body = json.loads(data)
        if body.get("format") != 1:
            raise ValueError(
                f"{PLAN_KEY} has format {body.get('format')!r}, this release reads 1; use a matching release"
            )
        segments = tuple(Segment(**segment) for segment in body["segments"])
        return Plan(encoder=body["encoder"], settings=body["config"], segments=segments)

    def segment_of(self, unit: int) -> Segment:
        """The segment a unit belongs to. Raises: IndexError."""
        for segment in self.segments:
            if segment.first_unit <= unit < segment.first_unit + segment.units:
                return segment
        raise IndexError(f"unit {unit} is not in the plan, which has {self.units}")

    def rows_in(self, unit: int) -> int:
        """How many rows a unit has."""
        segment = self.segment_of(unit)
        return min(segment.unit_rows, segment.rows - (unit - segment.first_unit) * segment.unit_rows)

    def grown(self, segment: Segment) -> Plan:
        """The plan with one more segment."""
        return replace(self, segments=(*self.segments, segment))

    def inputs(self, unit: int) -> str:
        """Digest of all that decides a unit's bytes besides the videos; stands in its commit record."""
        segment = self.segment_of(unit)
        return _digest([self.encoder, self.settings, segment.digest, unit - segment.first_unit, segment.unit_rows])


def read_plan(store: Store) -> Plan:
    """The plan of a dataset. Raises: FileNotFoundError."""
    return Plan.from_json(store.read(PLAN_KEY))


class PlanRows:
    """Rows of single units. Part files are read whole and the last few are kept: units come in order."""

    def __init__(self, store: Store, plan: Plan, keep: int = 2) -> None:
        self._store, self._plan, self._keep = store, plan, keep
        self._parts: OrderedDict[str, pa.Table] = OrderedDict()

    def unit(self, unit: int) -> list[dict[str, Any]]:
        """The rows of one unit in order, as dictionaries of PLAN_SCHEMA."""
        return list(self.table(unit).to_pylist())

    def table(self, unit: int) -> pa.Table:
        """The same as an Arrow table."""
        segment = self._plan.segment_of(unit)
        part, position = divmod(unit - segment.first_unit, segment.part_units)
        key = segment.part_key(part)
        if key not in self._parts:
            self._parts[key] = pq.read_table(BytesIO(self._store.read(key)))
            while len(self._parts) > self._keep:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        return self._parts[key].slice(position * segment.unit_rows, self._plan.rows_in(unit))


def automatic_unit_rows(rows: int) -> int:
    """Rows of a unit when the user does not say: 64 for a large manifest, fewer so that a small one still makes 16."""
    return min(64, max(1, -(-rows // 16)))


def rechunked(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` (the last may be shorter)."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            taken = batch.slice(0, rows - count)
            held.append(taken)
            count += taken.num_rows
            batch = batch.slice(taken.num_rows)
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)


class RowsDigest:
    """SHA-256 over normalised rows; `add` takes tables of DIGEST_ROWS rows (the last one may be shorter)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, table: pa.Table) -> None:
        for field in ROW_SCHEMA:
            if field.name != "row":  # the position says it; an appended manifest counts on
                self._add_column(table.column(field.name).combine_chunks())

    def _add_column(self, column: pa.Array) -> None:
        self._hash.update(np.asarray(column.is_valid()).tobytes())
        if pa.types.is_floating(column.type):
            self._hash.update(column.fill_null(0.0).to_numpy(zero_copy_only=False).tobytes())
            return
        text = column.fill_null("")
        offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
        self._hash.update((offsets - offsets[0]).tobytes())
        data = text.buffers()[2]
        if data is not None:
            self._hash.update(data[int(offsets[0]) : int(offsets[-1])])

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_parts(store: Store, segment: Segment, batches: Iterator[pa.RecordBatch]) -> None:
    """Write the part files of one segment. Same rows, same bytes."""
    rows = segment.part_units * segment.unit_rows
    for part, table in enumerate(rechunked(batches, rows)):
        buffer = BytesIO()
        pq.write_table(table.cast(PLAN_SCHEMA), buffer, compression="zstd", store_schema=False)
        store.write(segment.part_key(part), buffer.getvalue())


def settings_difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: was a, is b` for every setting on which two plans disagree."""
    return [
        f"{key}: was {old.get(key, 'not there')!r}, is {new.get(key, 'not there')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
