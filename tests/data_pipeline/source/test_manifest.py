"""Manifests of every kind give the same rows; whatever is wrong is named by its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.source import tables
from data_pipeline.source.manifest import open_manifest


def rows_of(source: Path) -> list[dict[str, Any]]:
    return [row for batch in open_manifest(source).batches for row in batch.to_pylist()]


ROWS: list[dict[str, Any]] = [
    {"video": "a b.mp4", "caption": 'one, "two"\nthree', "label": "x", "views": 3},
    {"video": "s3://bucket/k.mp4", "caption": None, "start": 1.5, "end": 4.0, "split": "val"},
    {"id": "given", "video": "http://host/v.mp4?x=1", "caption": "ünïcode", "start": 2.0},
]
EXPECTED = [
    ("a b.mp4", "a b.mp4", 'one, "two"\nthree', None, None, "x", ""),
    ("s3://bucket/k.mp4@1.5-4", "s3://bucket/k.mp4", None, 1.5, 4.0, "", "val"),
    ("given", "http://host/v.mp4?x=1", "ünïcode", 2.0, None, "", ""),
]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows in one of the formats, written without our code."""
    path = folder / f"manifest{suffix}"
    columns = ["id", "video", "caption", "start", "end", "label", "split", "views"]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]), path)
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path, suffix))
    fields = ("id", "video", "caption", "start", "end", "label", "split")
    assert [tuple(row[name] for name in fields) for row in rows] == EXPECTED
    assert [row["row"] for row in rows] == [1, 2, 3]
    views = json.loads(rows[0]["extra"])
    assert views in ({"views": 3}, {"views": "3"}), "CSV has no types"
    assert rows[1]["extra"] == ""
    assert open_manifest(tmp_path / f"manifest{suffix}").base == str(tmp_path)


def test_windows_of_one_video_have_different_ids_also_with_one_time_alone(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video,start,end\na.mp4,,\na.mp4,2.5,\na.mp4,,2.5\na.mp4,0,2.5\n")
    assert [row["id"] for row in rows_of(tmp_path / "m.csv")] == ["a.mp4", "a.mp4@2.5-", "a.mp4@-2.5", "a.mp4@0-2.5"]


def test_a_folder_gives_its_videos_in_order_with_the_captions_beside_them(tmp_path: Path) -> None:
    folders = [f"c{number:02d}" for number in range(20)]
    videos = [f"{folder}/1.mp4" for folder in folders]
    for name in ("b/2.mp4", "b/10.MKV", "a.webm", "notes.md", ".hidden.mp4", "b/2.jpg", *reversed(videos)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b/2.txt").write_text("  a caption\n")
    rows = rows_of(tmp_path)
    assert [(row["id"], row["caption"]) for row in rows] == [
        ("a.webm", None),
        ("b/10.MKV", None),
        ("b/2.mp4", "a caption"),
        *((video, None) for video in videos),
    ]


def test_a_folder_with_a_caption_table_loses_no_video(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "captions.csv").write_text("video,caption\n./b.mp4,of b\nmissing.mp4,of nothing\n")
    assert [(row["video"], row["caption"]) for row in rows_of(tmp_path)] == [
        ("./b.mp4", "of b"),
        ("missing.mp4", "of nothing"),
        ("a.mp4", None),
    ]


def test_a_caption_table_alone_is_enough_and_two_are_too_many(tmp_path: Path) -> None:
    """Its videos may all lie elsewhere."""
    (tmp_path / "captions.csv").write_text("video,caption\ns3://bucket/a.mp4,of a\n")
    assert [row["video"] for row in rows_of(tmp_path)] == ["s3://bucket/a.mp4"]
    (tmp_path / "captions.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(ValueError, match=r"holds captions\.csv, captions\.jsonl; keep one of them"):
        rows_of(tmp_path)


def test_what_programs_put_around_the_rows_is_no_part_of_them(tmp_path: Path) -> None:
    """A byte order mark, as spreadsheets write it; blank lines; captions of nothing."""
    (tmp_path / "m.csv").write_text("\ufeffvideo,caption\na,x\n\nb,y\n", encoding="utf-8")
    assert [(row["row"], row["video"]) for row in rows_of(tmp_path / "m.csv")] == [(1, "a"), (2, "b")]
    path = tmp_path / "m.jsonl"
    path.write_text('\n{"video": "a", "caption": ""}\n\n{"video": "b", "caption": "  "}\n{"video" x\n')
    with pytest.raises(ValueError, match="row 3: is not JSON: Expecting ':' delimiter at character 10 of its line"):
        rows_of(path)
    path.write_text('{"video": "a", "caption": ""}\n{"video": "b", "caption": "  "}\n')
    assert [row["caption"] for row in rows_of(path)] == [None, None]


def test_times_may_be_clock_times(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video,start,end\na,0:01:02.5,1:05\n")
    (row,) = rows_of(path)
    assert (row["start"], row["end"]) == (62.5, 65.0)


def test_batches_are_bounded_and_rows_are_counted_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 4)
    path = tmp_path / "m.csv"
    path.write_text("video,caption\n" + "".join(f"v{n}.mp4,c\n" for n in range(10)))
    batches = list(open_manifest(path).batches)
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert batches[2]["row"].to_pylist() == [9, 10]
    path.write_text("video,caption,start\n" + "v,c,\n" * 9 + "v,c,-1\n")
    with pytest.raises(ValueError, match="row 10: start must be seconds"):
        list(open_manifest(path).batches)


WRONG = {
    "video is missing": ("video,caption\na,b\n,c\n", "m.csv row 2: video is missing"),
    "no video column": (
        "path,caption\na,b\n",
        r"no column 'video'; its columns are 'path', 'caption'; nearest: 'path'; pass columns\.video=path",
    ),
    "fields": ('video,caption\na,b\n"a",b,c\n', "row 2: line 3 has 3 fields, the header 2"),
    "quote": ('video,caption\n"a"x,b\n', "line 2: the row that begins here is not valid CSV"),
    "open quote": ('video,caption\na,b\nc,"d\ne,f\ng,h\n', "line 3: the row that begins here is not valid CSV"),
    "twice": ("video,video\na,b\n", "names a column twice"),
    "empty": ("", "is empty"),
    "header only": ("video,caption\n", "has no rows"),
    "end": ("video,start,end\na,3,2\n", "row 1: end must be after start, got 2.0"),
    "end at start": ("video,start,end\na,3,3\n", "row 1: end must be after start, got 3.0"),
    "end at the beginning": ("video,end\nb,1\na,0\n", "row 2: end must be after start, got 0.0"),
    "nan": ("video,start\na,nan\n", "row 1: start must be seconds"),
    "word": ("video,start\na,soon\n", "row 1: start must be seconds, not negative, got 'soon'"),
    "split": (
        "video,split\na,training\n",
        "row 1: split must be one of train, val, test, or its column",
    ),
    "scheme": ("video\nfile:///etc/passwd\n", "row 1: only paths, s3://bucket/key and http"),
    "ftp": ("video\nok.mp4\nftp://host/x\n", "row 2: only paths"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_named(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        rows_of(path)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/v.mp4",
        "s3://AKIA:hunter2@bucket/v.mp4",
        "https://host/v.mp4?X-Amz-Credential=a&X-Amz-Signature=hunter2",
        "https://host/v.mp4?AWSAccessKeyId=AKIAEXAMPLE&Expires=1&Signature=hunter2",
        "https://host/v.mp4?sv=2024-01-01&sig=hunter2",
        "https://host/v.mp4?token=hunter2",
    ],
)
@pytest.mark.parametrize("column", ["video", "id", "label", "page"])
def test_credentials_are_refused_and_not_repeated(url: str, column: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"video": "ok.mp4", column: url}) + "\n")
    with pytest.raises(ValueError, match=r"row 1: a .*credentials") as refusal:
        rows_of(path)
    assert "hunter2" not in str(refusal.value)


def test_wrong_types_and_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"video": "a", "caption": "x"}\n{"video": "a", "caption": 7}\n')
    with pytest.raises(ValueError, match="row 2: caption must be text, got 7"):
        rows_of(path)
    path.write_text('{"video": "a"}\n[1]\n')
    with pytest.raises(ValueError, match="row 2: is not a JSON object but list"):
        rows_of(path)
    path.write_text('{"video": "a"}\n{"video"\n')
    with pytest.raises(ValueError, match="row 2: is not JSON"):
        rows_of(path)
    latin = tmp_path / "m.csv"
    latin.write_bytes("video,caption\na,caf\xe9\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"^m\.csv line 2 holds the byte 0xe9, which is not UTF-8; save the file as UTF-8"
    ):
        rows_of(latin)
    path.write_bytes(b'{"video": "a"}\n\n{"video": "b", "caption": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"^m\.jsonl line 3 holds the byte 0xe9, which is not UTF-8; save the file as"):
        rows_of(path)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        rows_of(tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="does not exist"):
        open_manifest(tmp_path / "nowhere")
    for name, remedy in {
        "m.xlsx": "as .csv",
        "m.csv.gz": "unpack it",
        "m.json": "name it .jsonl",
        "m.doc": "use one",
    }.items():
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"is not a manifest; .*{remedy}"):
            rows_of(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no videos in"):
        rows_of(tmp_path / "empty")


def test_numbers_do_as_id_and_label_and_categories_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "video": pa.array(["a", "b"]).dictionary_encode(),
            "id": [11, 12],
            "label": [0, None],
            "caption": pa.array(["x", "y"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    rows = rows_of(tmp_path / "m.parquet")
    assert [(row["id"], row["video"], row["label"], row["caption"]) for row in rows] == [
        ("11", "a", "0", "x"),
        ("12", "b", "", "y"),
    ]
