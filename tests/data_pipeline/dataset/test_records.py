"""Records against the bytes that lie on a store, written out by hand; and what is refused, with file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.dataset.description import DATASET_KEY, read_dataset
from data_pipeline.dataset.ledger import ClipCounts, RowCounts
from data_pipeline.dataset.plan import read_plan
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.records import CommitRecord, IndexEntry, ShardEntry
from data_pipeline.dataset.row_fates import RejectedStretch, RowFate
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.dataset.units import read_record
from data_pipeline.store.local import LocalStore

RECORD = (
    b'{"encoder":"e-1","format":1,"index":{"bytes":12,"name":"units/000007.arrow","sha256":"aa"},"inputs":"bb",'
    b'"rows":['
    b'{"clips":2,"fate":"committed","id":"k\xc3\xa4se.mp4","rejected":[],"row":1},'
    b'{"clips":1,"fate":"committed","id":"b","rejected":['
    b'{"clip":0,"end":1.5,"measured":{"motion":0.123457,"side":7,"what":"x"},"reason":"black","start":0}],"row":2},'
    b'{"fate":"rejected","id":"c","measured":{"characters":0},"reason":"caption_missing","row":3},'
    b'{"fate":"rejected","id":"d","reason":"too_short","rejected":['
    b'{"clip":null,"end":0.4,"measured":{},"reason":"too_short","start":0.0}],"row":4},'
    b'{"detail":"there is no such file","error":"missing","fate":"quarantined","id":"e","retry_of":"timeout","row":5},'
    b'{"fate":"rejected","id":"f","measured":{},"reason":"taken_down","retry_of":"missing","row":6}],'
    b'"shards":[{"bytes":1024,"name":"shards/000007-000.tar","samples":3,"sha256":"cc","splits":{"train":2,"val":1}}],'
    b'"unit":7}\n'
)


def row(number: int, identity: str, retried_error: str = "") -> PlanRow:
    return PlanRow(
        row=number,
        id=identity,
        video="v.mp4",
        caption=None,
        start=None,
        end=None,
        label="",
        split="",
        extra="",
        retried_error=retried_error,
    )


BLACK = RejectedStretch(clip=0, start=0, end=1.5, reason="black", measured={"motion": 0.123457, "side": 7, "what": "x"})
SHORT = RejectedStretch(clip=None, start=0.0, end=0.4, reason="too_short", measured={})


def test_a_record_with_every_kind_of_field_has_these_bytes() -> None:
    record = CommitRecord(
        unit=7,
        inputs="bb",
        encoder="e-1",
        shards=(
            ShardEntry(name="shards/000007-000.tar", bytes=1024, sha256="cc", samples=3, splits={"val": 1, "train": 2}),
        ),
        index=IndexEntry(name="units/000007.arrow", bytes=12, sha256="aa"),
        rows=(
            RowFate.committed(row(1, "käse.mp4"), 2),
            RowFate.committed(row(2, "b"), 1, [BLACK]),
            RowFate.rejected(row(3, "c"), "caption_missing", {"characters": 0}),
            RowFate.rejected_in_parts(row(4, "d"), "too_short", [SHORT]),
            RowFate.quarantined(row(5, "e", "timeout"), "missing", "there is no such file"),
            RowFate.rejected(row(6, "f", "missing"), "taken_down", {}),
        ),
    )
    assert record.to_bytes() == RECORD
    assert CommitRecord.from_bytes(RECORD) == record
    assert CommitRecord.from_bytes(RECORD).to_bytes() == RECORD, "0 stays 0, and 0.0 stays 0.0"


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.pop("inputs"), "field inputs is missing"),
        (lambda record: record.update(unit="7"), 'field unit must be a whole number, not "7"'),
        (lambda record: record.update(unit=True), "field unit must be a whole number, not true"),
        (lambda record: record.update(colour="red"), "field colour is unknown to this version"),
        (lambda record: record.update(format=2), "format 2, and this version reads 1"),
        (lambda record: record.update(rows=3), "field rows must be a list, not 3"),
        (lambda record: record["rows"].append(None), r"rows\[6\] must be a JSON object, not null"),
        (lambda record: record["rows"][0].pop("clips"), r"field rows\[0\]\.clips is missing"),
        (lambda record: record["rows"][0].update(reason="x"), r"field rows\[0\]\.reason is unknown"),
        (lambda record: record["rows"][0].update(fate="lost"), r"field rows\[0\]\.fate must be .*not \"lost\""),
        (lambda record: record["rows"][1]["rejected"][0].update(end="1"), r"rows\[1\]\.rejected\[0\]\.end must be"),
        (lambda record: record["rows"][2]["measured"].update(a=None), r"field rows\[2\]\.measured\.a must be"),
        (
            lambda record: record["rows"][3].update(rejected=[]),
            r"field rows\[3\]\.rejected must be a list with at least one stretch",
        ),
        (lambda record: record["rows"][4].pop("detail"), r"field rows\[4\]\.detail is missing"),
        (lambda record: record["shards"][0].update(bytes=1.0), r"field shards\[0\]\.bytes must be a whole number"),
        (lambda record: record["shards"][0]["splits"].update(val="1"), r"field shards\[0\]\.splits\.val must be"),
        (lambda record: record["index"].pop("sha256"), r"field index\.sha256 is missing"),
    ],
)
def test_a_wrong_field_is_refused_with_file_field_and_remedy(tmp_path: Path, edit: Edit, message: str) -> None:
    record = json.loads(RECORD)
    edit(record)
    store = LocalStore(tmp_path)
    store.write("units/000007.json", json.dumps(record).encode())
    with pytest.raises(ValueError, match=rf"units/000007\.json cannot be used: .*{message}.*; delete .* run the same"):
        read_record(store, 7)


def test_a_record_that_is_no_json_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for data in (b"", RECORD[:-20], b"\xff", b"[]"):
        store.write("units/000007.json", data)
        with pytest.raises(
            ValueError, match=r"units/000007\.json cannot be used: .*; delete .* and run the same command"
        ):
            read_record(store, 7)


DATASET = b"""{
 "clips": {
  "committed": 3,
  "rejected": {
   "black": 1
  }
 },
 "encoder": "e-1",
 "format": 1,
 "fps": 8,
 "index": {
  "bytes": 12,
  "name": "index.arrow",
  "sha256": "aa"
 },
 "plan": "bb",
 "records": "cc",
 "rows": {
  "committed": 2,
  "input": 4,
  "quarantined": {
   "missing": 1
  },
  "rejected": {
   "caption_missing": 1
  }
 },
 "samples": 3,
 "shards": [
  {
   "bytes": 1024,
   "name": "shards/000007-000.tar",
   "samples": 3,
   "sha256": "dd",
   "splits": {
    "train": 2,
    "val": 1
   }
  }
 ],
 "splits": {
  "train": 2,
  "val": 1
 },
 "storage": {
  "codec": "h264",
  "short_side": 68
 }
}
"""


def test_a_description_is_read_and_written_with_these_bytes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write(DATASET_KEY, DATASET)
    description = read_dataset(store)
    assert description.to_bytes() == DATASET
    assert (description.fps, description.short_side, description.digest) == (8, 68, "aa")
    assert description.rows == RowCounts(
        input=4, committed=2, rejected={"caption_missing": 1}, quarantined={"missing": 1}
    )
    assert description.clips == ClipCounts(committed=3, rejected={"black": 1})
    ledger = description.ledger
    assert (ledger.input, ledger.accounted, ledger.clips, ledger.shards, ledger.bytes) == (4, 4, 3, 1, 1024)
    assert ledger.splits == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content["rows"].pop("input"), r"is damaged: field rows\.input is missing; delete it and run"),
        (lambda content: content.update(fps="8"), 'is damaged: field fps must be a number, not "8"'),
        (lambda content: content["storage"].pop("short_side"), r"is damaged: field storage\.short_side is missing"),
        (lambda content: content.update(format=2), ": format 2, and this version reads 1; rebuild the shards"),
    ],
)
def test_a_wrong_description_is_refused_with_file_field_and_remedy(tmp_path: Path, edit: Edit, message: str) -> None:
    content = json.loads(DATASET)
    edit(content)
    store = LocalStore(tmp_path)
    store.write(DATASET_KEY, json.dumps(content).encode())
    with pytest.raises(ValueError, match=rf"dataset\.json *{message}"):
        read_dataset(store)


def test_a_damaged_plan_and_a_damaged_list_of_takedowns_are_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("plan.json", b'{"format": 2, "encoder": 3}')
    with pytest.raises(ValueError, match=r"plan\.json is damaged: field encoder must be a text, not 3; restore it"):
        read_plan(store)
    store.write("plan.json", b'{"format": 1}')
    with pytest.raises(ValueError, match=r"plan\.json: format 1, and this version reads 2"):
        read_plan(store)
    store.write("takedown.json", b'{"ids": ["a", 1]}')
    with pytest.raises(ValueError, match=r"takedown\.json is damaged: field ids\[1\] must be a text, not 1; restore"):
        taken_down(store)
