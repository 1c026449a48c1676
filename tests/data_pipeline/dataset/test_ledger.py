"""The account against sums made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.dataset.ledger import Ledger, row_reason


def fate(row: int, kind: str, **rest: Any) -> dict[str, Any]:
    return {"row": row, "id": f"r{row}", "fate": kind, **rest}


RECORD = {
    "rows": [
        fate(1, "committed", clips=3, rejected=[{"reason": "black"}, {"reason": "too_short"}]),
        fate(2, "rejected", reason="caption_missing"),
        fate(3, "rejected", reason="too_short", rejected=[{"reason": "too_short"}]),
        fate(4, "quarantined", error="missing"),
        fate(5, "quarantined", error="undecodable"),
    ],
    "shards": [{"bytes": 10, "splits": {"train": 2}}, {"bytes": 5, "splits": {"train": 1, "val": 0}}],
}


def test_every_row_is_counted_once() -> None:
    ledger = Ledger()
    ledger.add(RECORD)
    assert ledger.rows_json() == {
        "input": 5,
        "committed": 1,
        "rejected": {"caption_missing": 1, "too_short": 1},
        "quarantined": {"missing": 1, "undecodable": 1},
    }
    assert ledger.clips_json() == {"committed": 3, "rejected": {"black": 1, "too_short": 2}}
    assert ledger.accounted == 5
    assert (ledger.shards, ledger.bytes, ledger.splits["train"]) == (2, 15, 3)


def test_a_retried_row_moves_from_its_error_to_its_new_fate() -> None:
    ledger = Ledger()
    ledger.add(RECORD)
    again = [
        fate(4, "committed", clips=1, retry_of="missing"),
        fate(5, "quarantined", error="crash", retry_of="undecodable"),
    ]
    ledger.add({"rows": again, "shards": []})
    assert ledger.rows_json()["quarantined"] == {"crash": 1}
    assert (ledger.input, ledger.committed, ledger.accounted) == (5, 2, 5)


def test_dataset_json_and_table_say_the_same() -> None:
    ledger = Ledger()
    ledger.add(RECORD)
    dataset = {
        "rows": ledger.rows_json(),
        "clips": ledger.clips_json(),
        "shards": RECORD["shards"],
        "splits": dict(ledger.splits),
    }
    assert Ledger.of_dataset(dataset).table() == ledger.table()
    words = [line.split() for line in ledger.table().splitlines()]
    assert ["source", "rows", "5"] in words
    assert ["caption_missing", "1"] in words


def test_a_fate_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="row 9 ended as 'forgotten'"):
        Ledger().add({"rows": [fate(9, "forgotten")], "shards": []})


def test_the_reason_of_a_row_is_its_most_frequent_one() -> None:
    assert row_reason(["black", "frozen", "frozen"]) == "frozen"
    assert row_reason(["black", "frozen"]) == "black"
