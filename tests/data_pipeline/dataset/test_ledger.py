"""The account against sums made by hand."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.dataset.ledger import Ledger, row_reason
from data_pipeline.dataset.records import CommitRecord, IndexEntry, ShardEntry
from data_pipeline.dataset.row_fates import RejectedStretch, RowFate


@dataclass(frozen=True)
class Row:
    row: int
    retried_error: str = ""

    @property
    def id(self) -> str:
        return f"r{self.row}"


def stretches(*reasons: str) -> list[RejectedStretch]:
    return [RejectedStretch(clip=n, start=n, end=n + 1, reason=r, measured={}) for n, r in enumerate(reasons)]


def shard(length: int, **splits: int) -> ShardEntry:
    return ShardEntry(name="shards/x.tar", bytes=length, sha256="0", samples=sum(splits.values()), splits=splits)


def record(rows: list[RowFate], shards: list[ShardEntry]) -> CommitRecord:
    index = IndexEntry(name="units/000000.arrow", bytes=1, sha256="0")
    return CommitRecord(unit=0, inputs="i", encoder="e", shards=tuple(shards), index=index, rows=tuple(rows))


FIRST = record(
    [
        RowFate.committed(Row(1), 3, stretches("black", "too_short")),
        RowFate.rejected(Row(2), "caption_missing", {"characters": 0}),
        RowFate.rejected_in_parts(Row(3), "too_short", stretches("too_short")),
        RowFate.quarantined(Row(4), "missing", ""),
        RowFate.quarantined(Row(5), "undecodable", ""),
    ],
    [shard(10, train=2), shard(5, train=1)],
)


def test_every_row_is_counted_once() -> None:
    ledger = Ledger()
    ledger.add(FIRST)
    assert ledger.row_counts().to_json() == {
        "input": 5,
        "committed": 1,
        "rejected": {"caption_missing": 1, "too_short": 1},
        "quarantined": {"missing": 1, "undecodable": 1},
    }
    assert ledger.clip_counts().to_json() == {"committed": 3, "rejected": {"black": 1, "too_short": 2}}
    assert ledger.accounted == 5
    assert (ledger.shards, ledger.bytes, ledger.splits["train"]) == (2, 15, 3)


def test_a_retried_row_moves_from_its_error_to_its_new_fate() -> None:
    ledger = Ledger()
    ledger.add(FIRST)
    again = [
        RowFate.committed(Row(4, retried_error="missing"), 1),
        RowFate.quarantined(Row(5, retried_error="undecodable"), "crash", ""),
    ]
    ledger.add(record(again, []))
    assert ledger.row_counts().quarantined == {"crash": 1}
    assert (ledger.input, ledger.committed, ledger.accounted) == (5, 2, 5)


def test_the_table_has_a_line_for_every_sum() -> None:
    ledger = Ledger()
    ledger.add(FIRST)
    words = [line.split() for line in ledger.table().splitlines()]
    assert ["source", "rows", "5"] in words
    assert ["caption_missing", "1"] in words
    assert ["clips", "3", "(train", "3)"] in words


def test_the_reason_of_a_row_is_its_most_frequent_one() -> None:
    assert row_reason(["black", "frozen", "frozen"]) == "frozen"
    assert row_reason(["black", "frozen"]) == "black"
