"""The account of a dataset: every source row is committed, rejected for a reason, or quarantined with an error.

    input = committed + sum(rejected) + sum(quarantined)

A row is committed when it gave at least one clip. Its other stretches that did not become clips are counted with the
clips. A retried row leaves the error it had before and takes the fate it got.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

COMMITTED, REJECTED, QUARANTINED = "committed", "rejected", "quarantined"
TAKEN_DOWN = "taken_down"
"""Reason of a row whose source was removed on demand."""
NEAR_DUPLICATE = "near_duplicate"
"""Reason of a clip that shows what a clip of another row shows, and of a row that has no other clips."""


def row_fate(row: dict[str, Any], **fate: Any) -> dict[str, Any]:
    """The entry of one source row in a commit record."""
    entry = {"row": row["row"], "id": row["id"], **fate}
    if row["retry_of"]:
        entry["retry_of"] = row["retry_of"]
    return entry


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

    def add(self, record: dict[str, Any]) -> None:
        """Count one unit's commit record. Raises: ValueError for a fate that is none of the three."""
        for fate in record["rows"]:
            self._add_row(fate)
        for shard in record["shards"]:
            self.shards += 1
            self.bytes += shard["bytes"]
            self.splits.update(shard["splits"])

    def _add_row(self, fate: dict[str, Any]) -> None:
        if before := fate.get("retry_of"):
            self.quarantined[before] -= 1
        else:
            self.input += 1
        kind = fate["fate"]
        if kind == COMMITTED:
            self.committed += 1
            self.clips += fate["clips"]
        elif kind == REJECTED:
            self.rejected[fate["reason"]] += 1
        elif kind == QUARANTINED:
            self.quarantined[fate["error"]] += 1
        else:
            raise ValueError(f"row {fate.get('row')} ended as {kind!r}, which is no fate")
        self.clips_rejected.update(clip["reason"] for clip in fate.get("rejected", ()))

    @property
    def accounted(self) -> int:
        """Rows with a fate."""
        return self.committed + sum(self.rejected.values()) + sum(self.quarantined.values())

    def rows_json(self) -> dict[str, Any]:
        """The `rows` of dataset.json."""
        return {
            "input": self.input,
            COMMITTED: self.committed,
            REJECTED: _plain(self.rejected),
            QUARANTINED: _plain(self.quarantined),
        }

    def clips_json(self) -> dict[str, Any]:
        """The `clips` of dataset.json."""
        return {COMMITTED: self.clips, REJECTED: _plain(self.clips_rejected)}

    @staticmethod
    def of_dataset(dataset: dict[str, Any]) -> Ledger:
        """The totals that dataset.json holds."""
        rows, clips = dataset["rows"], dataset["clips"]
        return Ledger(
            input=rows["input"],
            committed=rows[COMMITTED],
            rejected=Counter(rows[REJECTED]),
            quarantined=Counter(rows[QUARANTINED]),
            clips=clips[COMMITTED],
            clips_rejected=Counter(clips[REJECTED]),
            shards=len(dataset["shards"]),
            bytes=sum(shard["bytes"] for shard in dataset["shards"]),
            splits=Counter(dataset["splits"]),
        )

    def table(self) -> str:
        """The account as text, for people."""
        lines: list[tuple[str, str]] = [("source rows", str(self.input)), ("  committed", str(self.committed))]
        for name, counts in ((REJECTED, self.rejected), (QUARANTINED, self.quarantined)):
            lines.append((f"  {name}", str(sum(counts.values()))))
            lines += [(f"    {reason}", str(count)) for reason, count in _plain(counts).items()]
        splits = ", ".join(f"{name} {count}" for name, count in sorted(self.splits.items()))
        lines.append(("clips", f"{self.clips}" + (f"  ({splits})" if splits else "")))
        if self.clips_rejected:
            lines.append(("stretches that gave no clip", str(sum(self.clips_rejected.values()))))
            lines += [(f"    {reason}", str(count)) for reason, count in _plain(self.clips_rejected).items()]
        lines.append(("shards", f"{self.shards}  ({self.bytes / 1e6:,.1f} MB)"))
        width = max(len(name) for name, _ in lines) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in lines)


def _plain(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}


def row_reason(reasons: Iterable[str]) -> str:
    """Why a row without clips was rejected: the most frequent reason of its stretches, the earliest one of equals."""
    return Counter(reasons).most_common(1)[0][0]
