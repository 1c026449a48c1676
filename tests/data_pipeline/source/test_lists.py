"""Rows with lists: as Panda-70M (Python literals in CSV), JSON and Parquet have them, and what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.source import lists
from data_pipeline.source.config import ColumnsConfig, WrongRows
from data_pipeline.source.manifest import ReadOptions, open_manifest

PANDA = (
    "videoID,url,timestamp,caption,matching_score\n"
    "abc,https://host/watch?v=abc,\"[['0:00:16.300', '0:00:18.966'], ['0:00:19.000', '0:01:25']]\","
    '"[\'A dog, running.\', ""It\'s a \'nice\' day""]","[0.41, 0.5]"\n'
)
WINDOWS = [("A dog, running.", 16.3, 18.966), ("It's a 'nice' day", 19.0, 85.0)]


def read(source: Path, *, rows: WrongRows = WrongRows.STRICT, **columns: Any) -> tuple[list[dict[str, Any]], str]:
    said: list[str] = []
    options = ReadOptions(columns=ColumnsConfig(**columns), rows=rows, say=said.append)
    return [row for batch in open_manifest(source, options).batches for row in batch.to_pylist()], "\n".join(said)


def windows(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    return [(row["caption"], row["start"], row["end"]) for row in rows]


def test_python_literals_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "panda.csv"
    path.write_text(PANDA)
    rows, _ = read(path, video="{videoID}.mp4", times="timestamp", explode=["matching_score"])
    assert windows(rows) == WINDOWS
    assert [row["row"] for row in rows] == [1, 2]
    assert [row["id"] for row in rows] == ["abc.mp4@16.3-18.966", "abc.mp4@19-85"]
    assert [json.loads(row["extra"])["matching_score"] for row in rows] == [0.41, 0.5]
    assert {json.loads(row["extra"])["videoID"] for row in rows} == {"abc"}
    rows, _ = read(path, video="{videoID}.mp4", id="videoID", times="timestamp")
    assert [row["id"] for row in rows] == ["abc#1", "abc#2"]
    assert {json.loads(row["extra"])["matching_score"] for row in rows} == {"[0.41, 0.5]"}, "not asked to be parted"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_lists_of_starts_ends_and_captions(suffix: str, tmp_path: Path) -> None:
    row = {
        "video": "a.mp4",
        "caption": [caption for caption, _, _ in WINDOWS],
        "start": [16.3, 19.0],
        "end": [18.966, 85.0],
    }
    path = tmp_path / f"m{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(row) + "\n" + json.dumps({"video": "b.mp4", "caption": "one"}) + "\n")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row, {"video": "b.mp4", "caption": ["one"]}]), path)
    else:
        texts = [json.dumps(value).replace('"', '""') if key != "video" else value for key, value in row.items()]
        path.write_text("video,caption,start,end\n" + ",".join(f'"{text}"' for text in texts) + "\nb.mp4,one,,\n")
    rows, _ = read(path)
    assert windows(rows) == [*WINDOWS, ("one", None, None)]
    assert [row["video"] for row in rows] == ["a.mp4", "a.mp4", "b.mp4"]
    assert rows[2]["id"] == ("b.mp4#1" if suffix == ".parquet" else "b.mp4")


def test_one_value_stands_for_all_items_and_one_pair_for_one_window(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"video": "a", "caption": "said of both", "t": [[0, 1], ["0:02", "0:03.5"]], "label": "x"}\n'
        '{"video": "b", "caption": "of one", "t": [4, 5]}\n{"video": "c", "caption": "of all", "t": null}\n'
    )
    rows, _ = read(path, times="t")
    assert windows(rows) == [
        ("said of both", 0.0, 1.0),
        ("said of both", 2.0, 3.5),
        ("of one", 4.0, 5.0),
        ("of all", None, None),
    ]
    assert [row["label"] for row in rows] == ["x", "x", "", ""]
    assert [row["id"] for row in rows] == ["a@0-1", "a@2-3.5", "b@4-5", "c"]


def test_captions_without_windows_need_no_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('video,caption\na.mp4,"[""one"", ""two""]"\nb.mp4,[laughs]\n')
    rows, said = read(path)
    assert [row["caption"] for row in rows] == ['["one", "two"]', "[laughs]"], "a caption may look like this"
    assert "m.csv: 1 caption written like a list and kept as one text; columns.explode=[COLUMN]" in said
    path.write_text('video,caption\na.mp4,"[""one"", ""two""]"\n')
    rows, said = read(path, explode=["caption"])
    assert [(row["id"], row["caption"]) for row in rows] == [("a.mp4#1", "one"), ("a.mp4#2", "two")]
    assert "like a list" not in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": ["x"], "start": [0, 1], "end": [1, 2]}, "different lengths: start 2, end 2, caption 1"),
        ({"caption": [], "start": [], "end": []}, "the list of start is empty"),
        ({"caption": "x", "t": [[0, 1, 2]]}, r"times must hold pairs \[start, end\], got \[0, 1, 2\]"),
        ({"caption": "x", "t": []}, "the list of times is empty"),
        ({"caption": "x", "t": "soon"}, "times must be a pair"),
        ({"caption": "x", "t": "[[0, 1], [2"}, "times begins like a list and is none that JSON or Python reads"),
        ({"caption": ["x", "y"], "t": [[0, 1], [3, 2]]}, "row 1, item 2: end must be after start, got 2.0"),
        ({"caption": ["x", 3], "t": [[0, 1], [2, 3]]}, "row 1, item 2: caption must be text, got 3"),
        ({"caption": "x", "t": "[__import__('os').getpid(), 1]"}, "is none that JSON or Python reads"),
    ],
)
def test_wrong_lists_are_named_with_row_and_item(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"video": "a.mp4"} | row) + "\n" + json.dumps({"video": "b", "caption": "z"}) + "\n")
    columns = {"times": "t"} if "t" in row else {}
    with pytest.raises(ValueError, match=message):
        read(path, **columns)
    rows, _ = read(path, rows=WrongRows.RECORD, **columns)
    assert rows[-1]["video"] == "b"
    assert any(row["problem"] for row in rows)


def test_rows_and_items_are_numbered_over_slices_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_SLICE", 3)
    path = tmp_path / "m.jsonl"
    rows = [{"video": f"v{n}", "caption": [f"{n}.{k}" for k in range(n % 3 + 1)]} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = read(path)
    assert [row["caption"] for row in found] == [caption for row in rows for caption in row["caption"]]
    assert [row["row"] for row in found] == list(range(1, len(found) + 1))
    assert found[-1]["id"] == "v9#1"


def test_a_value_is_kept_whatever_values_its_neighbours_have(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    given = [
        {"n": 1, "fps": 25, "caption": ["x", "y"], "score": [{"a": 1}, {"b": 2.0}]},
        {"n": 2, "fps": 29.97, "caption": ["x", "y"], "score": [3, 4.5]},
        {"n": "\u00e9", "fps": None, "caption": ["x", "y"], "score": [float("nan"), "z"]},
        {"n": 2.5, "fps": 25, "caption": "x", "score": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    rows, _ = read(path, rows=WrongRows.RECORD, video="{n}.mp4", label="fps", explode=["score"])
    assert [row["video"] for row in rows[:6]] == ["1.mp4"] * 2 + ["2.mp4"] * 2 + ["\u00e9.mp4"] * 2
    assert [json.loads(row["extra"]) for row in (*rows[:2], *rows[4:6])] == [
        {"n": 1, "score": {"a": 1}},
        {"n": 1, "score": {"b": 2.0}},
        {"n": "\u00e9"},
        {"n": "\u00e9", "score": "z"},
    ]
    assert [row["label"] for row in rows[:2]] == ["25", "25"]
    assert [row["problem"].partition(",")[0] for row in rows[2:4]] == ["label must be text"] * 2
    assert "holds 2.5, and a name is made of text and whole numbers" in rows[6]["problem"]


def test_what_python_writes_and_no_text_holds_is_a_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    windows_of = '"[[0, 1], [1, 2]]"'
    path.write_text(
        "video,caption,times,s\n"
        f'a,"[""\\ud83d"", ""b""]",{windows_of},x\n'
        f"b,\"['a', 'b']\",{windows_of},\"[{{1}}, b'x']\"\n"
        f"c,\"['a', 'b']\",{windows_of},\"[1, 2]\"\n"
    )
    rows, _ = read(path, rows=WrongRows.RECORD, times="times", explode=["s"])
    assert [row["problem"].partition(":")[0] for row in rows] == [
        "caption holds half of a surrogate pair, which is no character; mend the text",
        "the list of s holds more than texts, numbers and lists",
        "",
        "",
    ]
