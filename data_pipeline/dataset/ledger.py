"""The account of a dataset: every source row is committed, rejected for a reason, or quarantined with an error.

    input = committed + sum(rejected) + sum(quarantined)

A row is committed when it gave at least one clip. The stretches of a row that gave no clip are counted apart, together
with the clips. A retried row is no longer counted with the error that it had before, but with its new fate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.dataset.fields import Fields
from data_pipeline.dataset.kind import CLIPS, Kind
from data_pipeline.dataset.records import CommitRecord
from data_pipeline.dataset.row_fates import COMMITTED, QUARANTINED, REJECTED, RowFate


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """The `rows` of dataset.json: how many source rows have which fate."""

    input: int
    committed: int
    rejected: dict[str, int]  # reason -> rows
    quarantined: dict[str, int]  # error -> rows

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {
            "input": self.input,
            COMMITTED: self.committed,
            REJECTED: self.rejected,
            QUARANTINED: self.quarantined,
        }

    @staticmethod
    def from_json(fields: Fields) -> RowCounts:
        """Raises: FieldError."""
        return RowCounts(
            input=fields.integer("input"),
            committed=fields.integer(COMMITTED),
            rejected=fields.counts(REJECTED),
            quarantined=fields.counts(QUARANTINED),
        )


@dataclass(frozen=True, kw_only=True)
class ClipCounts:
    """The `clips` of dataset.json: how many stretches became clips, and how many did not."""

    committed: int
    rejected: dict[str, int]  # reason -> stretches

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {COMMITTED: self.committed, REJECTED: self.rejected}

    @staticmethod
    def from_json(fields: Fields) -> ClipCounts:
        """Raises: FieldError."""
        return ClipCounts(committed=fields.integer(COMMITTED), rejected=fields.counts(REJECTED))


@dataclass
class Ledger:
    """Totals over any number of commit records."""

    input: int = 0
    committed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    clips: int = 0
    clips_rejected: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    bytes: int = 0
    splits: Counter[str] = field(default_factory=Counter)

    def add(self, record: CommitRecord) -> None:
        """Count one unit's commit record."""
        for fate in record.rows:
            self._add_row(fate)
        for shard in record.shards:
            self.shards += 1
            self.bytes += shard.bytes
            self.splits.update(shard.splits)

    def _add_row(self, fate: RowFate) -> None:
        if fate.retried_error:
            self.quarantined[fate.retried_error] -= 1
        else:
            self.input += 1
        if fate.fate == COMMITTED:
            self.committed += 1
            self.clips += fate.clips
        elif fate.fate == REJECTED:
            self.rejected[fate.reason] += 1
        else:
            self.quarantined[fate.error] += 1
        self.clips_rejected.update(stretch.reason for stretch in fate.stretches)

    @property
    def accounted(self) -> int:
        """Rows with a fate."""
        return self.committed + sum(self.rejected.values()) + sum(self.quarantined.values())

    def row_counts(self) -> RowCounts:
        """The `rows` of dataset.json."""
        return RowCounts(
            input=self.input,
            committed=self.committed,
            rejected=_without_zeros(self.rejected),
            quarantined=_without_zeros(self.quarantined),
        )

    def clip_counts(self) -> ClipCounts:
        """The `clips` of dataset.json."""
        return ClipCounts(committed=self.clips, rejected=_without_zeros(self.clips_rejected))

    def table(self, kind: Kind = CLIPS) -> str:
        """The account of a dataset of a kind as a text table."""
        lines: list[tuple[str, str]] = [(f"source {kind.rows}", str(self.input)), ("  committed", str(self.committed))]
        for name, counts in ((REJECTED, self.rejected), (QUARANTINED, self.quarantined)):
            lines.append((f"  {name}", str(sum(counts.values()))))
            lines += [(f"    {reason}", str(count)) for reason, count in _without_zeros(counts).items()]
        splits = ", ".join(f"{name} {count}" for name, count in sorted(self.splits.items()))
        lines.append((kind.name, f"{self.clips}" + (f"  ({splits})" if splits else "")))
        if self.clips_rejected:
            lines.append((kind.refused, str(sum(self.clips_rejected.values()))))
            lines += [(f"    {reason}", str(count)) for reason, count in _without_zeros(self.clips_rejected).items()]
        lines.append(("shards", f"{self.shards}  ({self.bytes / 1e6:,.1f} MB)"))
        width = max(len(name) for name, _ in lines) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in lines)


def _without_zeros(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}


def row_reason(reasons: Iterable[str]) -> str:
    """Why a row without clips was rejected: the most frequent reason of its stretches, the earliest one of equals."""
    return Counter(reasons).most_common(1)[0][0]
