"""Rows and stretches that gave no clip: random examples of every reason, with pictures of their sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.row_fates import QUARANTINED, REJECTED, TAKEN_DOWN, RowFate
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.report.stills import NoPicture, SourceStills
from data_pipeline.report.tally import Reservoir
from data_pipeline.store.files import file_sha256

NOT_TRIED = frozenset({"crash", "timeout", "memory", "failure"})
"""Errors of quarantined rows. A source with such an error is not opened again for a picture."""


@dataclass(kw_only=True)
class Refusal:
    """A row, or a stretch of one, that gave no clip."""

    unit: int
    row: int
    id: str
    kind: str  # rejected or quarantined
    reason: str
    start: float | None = None
    end: float | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    detail: str = ""
    video: str = ""
    caption: str | None = None
    picture: bytes | None = None
    no_picture: str = ""  # the reason why there is no picture


class Refusals:
    """Draws a bounded number of refusals at random for each (kind, reason)."""

    def __init__(self, examples: int, seed: int) -> None:
        self.examples, self.seed = examples, seed
        self.drawn: dict[tuple[str, str], Reservoir[Refusal]] = {}

    def add(self, unit: int, fates: Iterable[RowFate]) -> None:
        """Offer the rows of a unit's commit record."""
        for fate in fates:
            if fate.retried_error:
                self._forget(fate.row)
            for refusal in _refusals(unit, fate):
                self._group(refusal).offer(refusal)

    def _group(self, refusal: Refusal) -> Reservoir[Refusal]:
        name = (refusal.kind, refusal.reason)
        if name not in self.drawn:
            self.drawn[name] = Reservoir(self.examples, f"{self.seed}:{name}")
        return self.drawn[name]

    def _forget(self, row: int) -> None:
        """Drop a row that was tried again, because its former error no longer holds."""
        for (kind, _), group in self.drawn.items():
            if kind == QUARANTINED:
                group.items = [item for item in group.items if item.row != row]

    def described(self, dataset: Dataset, rows: PlanRows, source: Path | None) -> dict[tuple[str, str], list[Refusal]]:
        """(kind, reason) -> the examples drawn, with the columns of their rows and, if possible, a picture."""
        removed = taken_down(dataset.store)
        groups = {name: sorted(group.items, key=lambda item: item.row) for name, group in sorted(self.drawn.items())}
        groups = {name: items for name, items in groups.items() if items}
        for item in sorted((item for items in groups.values() for item in items), key=lambda item: item.unit):
            if item.reason == TAKEN_DOWN or item.id in removed:
                item.id, item.measured, item.detail = "", {}, ""
                item.no_picture = "taken down on demand: nothing of it is shown"
                continue
            row = next(row for row in rows.unit(item.unit) if row.row == item.row)
            item.video, item.caption = row.video, row.caption
            if item.start is None:
                item.start, item.end = row.start, row.end
        _picture(dataset.plan, [item for items in groups.values() for item in items if not item.no_picture], source)
        return groups


def _refusals(unit: int, fate: RowFate) -> Iterator[Refusal]:
    """The refusals in one row of a commit record, without the row's own columns."""
    row, identity = fate.row, fate.id
    if fate.fate == QUARANTINED:
        yield Refusal(unit=unit, row=row, id=identity, kind=QUARANTINED, reason=fate.error, detail=fate.detail)
        return
    for item in fate.stretches:
        yield Refusal(
            unit=unit,
            row=row,
            id=identity,
            kind=REJECTED,
            reason=item.reason,
            start=item.start,
            end=item.end,
            measured=item.measured,
        )
    if fate.measured is not None:
        yield Refusal(unit=unit, row=row, id=identity, kind=REJECTED, reason=fate.reason, measured=fate.measured)


def _picture(plan: Plan, items: Iterable[Refusal], source: Path | None) -> None:
    """Fill in `picture`, or in `no_picture` the reason why there is none."""
    with ExitStack() as stack:
        segments: set[int] = set()
        stills = None
        if source is not None:
            segments = _segments_of(plan, source)
            stills = stack.enter_context(SourceStills((source if source.is_dir() else source.parent).absolute()))
        for item in items:
            if stills is None:
                item.no_picture = "no picture: the report was made without --source"
            elif plan.segment_of(item.unit).parent not in segments:
                item.no_picture = "no picture: the row is of another manifest than --source"
            elif item.kind == QUARANTINED and item.reason in NOT_TRIED:
                item.no_picture = f"no picture: not opened again after {item.reason}"
            else:
                try:
                    item.picture = stills.still(item.video, item.start, item.end)
                except NoPicture as error:
                    item.no_picture = str(error)


def _segments_of(plan: Plan, source: Path) -> set[int]:
    """Positions of the plan's manifests that `source` is: a file with the same content, or a folder of the same name.

    Raises: ValueError if `source` is none of them, because its videos would not be those of the dataset.
    """
    if not source.exists():
        raise ValueError(f"source {str(source)!r} does not exist; give what the dataset was built from, or no --source")
    digest = file_sha256(source) if source.is_file() else ""
    positions = {
        position
        for position, segment in enumerate(plan.segments)
        if segment.kind == "manifest"
        and segment.file_sha256.partition("+")[0] == digest  # behind the `+` stands what the columns were taken for
        and (digest or Path(segment.name).name == source.absolute().name)
    }
    if not positions:
        names = ", ".join(repr(segment.name) for segment in plan.segments if segment.kind == "manifest")
        raise ValueError(f"source {str(source)!r} is not what the dataset was built from, which is {names}")
    return positions
