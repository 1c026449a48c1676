"""The plan divides the rows of a manifest into numbered work units. It is fixed once, so every run does the same work.

`plan.json` holds the settings, the encoder version and a list of segments. The first segment is the first manifest;
each later segment is an appended manifest, or quarantined rows that are tried again. The normalised rows of a segment
lie in `plan/<digest of the rows>-<part>.parquet`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.dataset.description import DATASET_KEY, read_dataset
from data_pipeline.dataset.fields import Fields, WrongFormat, read_object
from data_pipeline.dataset.kind import CLIPS, LATENTS, TEXTS, Kind, kind_of
from data_pipeline.dataset.plan_parts import PART_SCHEMAS, PLAN_SCHEMA, read_part
from data_pipeline.dataset.records import RETRIED_ERROR
from data_pipeline.dataset.row_tables import has_problems, rechunked
from data_pipeline.store.base import Store

PLAN_KEY = "plan.json"
PLAN_FORMAT = 2
"""Of plan.json. Format 1 had units of equal length."""
PART_ROWS = 16_384
"""Largest number of rows in one part file. A unit with more rows than this has a part file of its own."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The units of one manifest, of the quarantined rows of a manifest that are tried again, or of one source shard."""

    kind: str  # "manifest" or "retry"; of latents "shard"
    parent: int  # position of the manifest's segment that the rows come from; a manifest has its own
    name: str  # of the manifest file or folder, for messages; of latents the key of the shard with the clips
    digest: str  # SHA-256 of the normalised rows
    # of the manifest file or the shard, to recognise it without parsing, for a manifest with `columns.*` followed by
    # `+` and a digest of these; of several manifests a digest of all; "" for a folder
    file_sha256: str
    rows: int
    duplicates: int  # rows merged into an earlier one
    first_row: int  # number of the first row, 1-based over the entire plan; 0 in a retry, whose rows keep theirs
    first_unit: int
    # positions of the rows that begin a unit, ascending, 0 for the segment's first row; without the first unit's,
    # which is 0: () is one unit, whose rows may be none
    cuts: tuple[int, ...]

    @property
    def units(self) -> int:
        return len(self.cuts) + 1

    def bounds(self, unit: int) -> tuple[int, int]:
        """Position of the first row of a unit of this segment, and of the row after its last one."""
        position = unit - self.first_unit
        begin = self.cuts[position - 1] if position else 0
        return begin, self.cuts[position] if position < len(self.cuts) else self.rows

    @cached_property
    def part_starts(self) -> tuple[int, ...]:
        """Positions of the rows that begin a part file. A part file holds whole units."""
        starts, end = [0], 0
        for cut in (*self.cuts, self.rows):
            if cut - starts[-1] > PART_ROWS and end > starts[-1]:
                starts.append(end)
            end = cut
        return tuple(starts)

    @property
    def part_lengths(self) -> list[int]:
        """The number of rows of each part file."""
        return [end - begin for begin, end in pairwise((*self.part_starts, self.rows))]

    @property
    def part_keys(self) -> list[str]:
        """The keys of all part files; none where there are no rows."""
        return [self.part_key(part) for part in range(len(self.part_starts))] if self.rows else []

    def part_of(self, unit: int) -> int:
        """The number of the part file that has the rows of a unit of this segment."""
        return bisect_right(self.part_starts, self.bounds(unit)[0]) - 1

    def part_key(self, part: int) -> str:
        """Key of a part file. It contains the digest, so that two drivers with different manifests never mix rows."""
        return f"plan/{self.digest[:16]}-{part:05d}.parquet"

    @staticmethod
    def from_json(stored: Fields) -> Segment:
        """Raises: FieldError."""
        cuts = stored.integers("cuts")
        segment = Segment(
            kind=stored.text("kind"),
            parent=stored.integer("parent"),
            name=stored.text("name"),
            digest=stored.text("digest"),
            file_sha256=stored.text("file_sha256"),
            rows=stored.integer("rows"),
            duplicates=stored.integer("duplicates"),
            first_row=stored.integer("first_row"),
            first_unit=stored.integer("first_unit"),
            cuts=tuple(cuts),
        )
        if any(end <= begin for begin, end in pairwise((0, *cuts, segment.rows))) and cuts:
            raise stored.wrong("cuts", f"positions of rows in ascending order between 0 and {segment.rows}", cuts)
        return segment


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The units of a dataset. A plan is small, because every worker gets a copy."""

    encoder: str  # version of everything that decides the bytes of a clip
    settings: dict[str, Any]  # dotted key -> value, see ShardsConfig.plan_settings
    segments: tuple[Segment, ...]

    @property
    def kind(self) -> Kind:
        """What the dataset consists of."""
        return kind_of(self.settings)

    @cached_property
    def units(self) -> int:
        return sum(segment.units for segment in self.segments)

    @cached_property
    def rows(self) -> int:
        """Source rows; a retry's rows are not counted again."""
        return sum(segment.rows for segment in self.segments if segment.kind != "retry")

    @cached_property
    def _first_units(self) -> list[int]:
        return [segment.first_unit for segment in self.segments]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The bytes of plan.json: the same for the same plan."""
        segments = [asdict(segment) for segment in self.segments]
        body = {
            "format": PLAN_FORMAT,
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
        """Raises: WrongFormat; FieldError for a missing, unknown or wrongly typed field; ValueError for no JSON."""
        return read_object(data, _plan)

    def segment_of(self, unit: int) -> Segment:
        """The segment that a unit belongs to. Raises: IndexError."""
        if 0 <= unit < self.units:
            return self.segments[bisect_right(self._first_units, unit) - 1]
        raise IndexError(f"unit {unit} is not in the plan, which has {self.units}")

    def rows_in(self, unit: int) -> int:
        """The number of rows of a unit."""
        begin, end = self.segment_of(unit).bounds(unit)
        return end - begin

    def grown(self, segment: Segment) -> Plan:
        """The plan with one more segment."""
        return replace(self, segments=(*self.segments, segment))

    def inputs(self, unit: int) -> str:
        """Digest of all that decides a unit's bytes besides the videos. The unit's commit record holds it."""
        segment = self.segment_of(unit)
        return _digest([self.encoder, self.settings, segment.digest, *segment.bounds(unit)])


def _plan(stored: Fields) -> Plan:
    stored.require_format(PLAN_FORMAT)
    plan = Plan(
        encoder=stored.text("encoder"),
        settings=stored.mapping("config"),
        segments=stored.records("segments", Segment.from_json),
    )
    for derived in ("config_digest", "rows", "units"):  # for people: they follow from the other fields
        stored.ignore(derived)
    return plan


def read_plan(store: Store) -> Plan:
    """The plan that lies on a store.

    Raises:
        FileNotFoundError: nothing was planned there.
        ValueError: the file is damaged, or of a format that this version does not read.
    """
    raw = store.read(PLAN_KEY)
    try:
        return Plan.from_json(raw)
    except WrongFormat as error:
        raise ValueError(f"{store.uri(PLAN_KEY)}: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"{store.uri(PLAN_KEY)} is damaged: {error}; restore it from a copy, or delete it and run the same "
            "commands again that made the dataset, in their order: unchanged input gives the same plan, and committed "
            "units stay"
        ) from error


@dataclass(frozen=True)
class Dataset:
    """A dataset on a store: the plan says which units it consists of."""

    store: Store
    plan: Plan

    @staticmethod
    def open(store: Store, kind: Kind | None = None) -> Dataset:
        """The dataset that lies on a store.

        Args:
            kind: what it must consist of; None takes any kind.
        Raises:
            ValueError: there is no plan, a damaged one, or the plan of a dataset of another kind.
        """
        try:
            dataset = Dataset(store, read_plan(store))
        except FileNotFoundError:
            raise ValueError(f"{store.uri()} has no plan.json{_why_there_is_none(store, kind)}") from None
        if kind is not None and dataset.plan.kind is not kind:
            raise ValueError(
                f"{store.uri()} is a dataset of {dataset.plan.kind.name}; name one of {kind.name}, as "
                f"{kind.made_by} makes it"
            )
        return dataset


def _why_there_is_none(store: Store, kind: Kind | None) -> str:
    """The end of a message about a missing plan: it was lost, or this is no dataset of the kind.

    Args:
        kind: what was to be opened; None for any kind.
    Raises: as `read_dataset`, but for a missing file.
    """
    try:
        found = read_dataset(store).kind
    except FileNotFoundError:
        scripts = [one.made_by for one in ((kind,) if kind else (CLIPS, LATENTS, TEXTS))]
        return f": it is not a dataset of {' or '.join(scripts)}"
    return (
        f", although its {DATASET_KEY} is that of a dataset of {found.name}; restore it from a copy, or run the same "
        f"commands of {found.made_by} again that made the dataset, in their order: unchanged input gives the same plan"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One source row of a plan, with the columns of PLAN_SCHEMA."""

    row: int  # 1-based over the entire plan
    id: str
    video: str  # as the manifest has it: relative path, absolute path or URL
    caption: str | None
    start: float | None  # seconds; None: from the beginning
    end: float | None  # seconds; None: to the end
    label: str  # "": none
    split: str  # "": by hash
    extra: str  # the manifest's other columns as one JSON object; "" when there are none
    duplicate_of: int | None = None  # with duplicates=merge: the earlier row with this id
    retried_error: str = ""  # in a retry: the error that the row had before
    problem: str = ""  # why the row as the manifest has it is of no use; "": it is usable


class PlanRows:
    """Reads the rows of single units. The last `keep` part files stay in memory, because units are read in order."""

    def __init__(self, dataset: Dataset, keep: int = 2) -> None:
        self._store, self._plan, self._keep = dataset.store, dataset.plan, keep
        self._parts: OrderedDict[str, pa.Table] = OrderedDict()

    def unit(self, unit: int) -> list[PlanRow]:
        """The rows of one unit in order."""
        table = self.table(unit)
        names = ["retried_error" if name == RETRIED_ERROR else name for name in table.column_names]
        return [PlanRow(**row) for row in table.rename_columns(names).to_pylist()]

    def table(self, unit: int) -> pa.Table:
        """The rows of one unit as an Arrow table of PLAN_SCHEMA. Raises: ValueError for a part of other columns."""
        segment = self._plan.segment_of(unit)
        if not segment.rows:
            return PLAN_SCHEMA.empty_table()
        part = segment.part_of(unit)
        key = segment.part_key(part)
        if key not in self._parts:
            self._parts[key] = read_part(self._store, key)
            while len(self._parts) > self._keep:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        begin, end = segment.bounds(unit)
        return self._parts[key].slice(begin - segment.part_starts[part], end - begin)


def write_parts(store: Store, segment: Segment, batches: Iterator[pa.RecordBatch]) -> None:
    """Write the part files of one segment. Same rows, same bytes."""
    for part, table in enumerate(rechunked(batches, segment.part_lengths)):
        buffer = BytesIO()
        schema = PART_SCHEMAS[has_problems(table)]
        pq.write_table(table.select(schema.names).cast(schema), buffer, compression="zstd", store_schema=False)
        store.write(segment.part_key(part), buffer.getvalue())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
