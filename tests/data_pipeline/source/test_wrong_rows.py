"""A wrong row is named with its file, number, column and the remedy; several are named together, or recorded."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.source.config import ColumnsConfig, WrongRows
from data_pipeline.source.manifest import ReadOptions, open_manifest
from data_pipeline.source.raw_rows import shown

CASES = Path(__file__).parent / "cases"


def rows_of(source: Path, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in open_manifest(source, ReadOptions(**options)).batches for row in batch.to_pylist()]


def jsonl(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"video": ["a.mp4"], "caption": ["x"]} | columns), path)
    return path


def test_half_of_a_surrogate_pair_is_named() -> None:
    with pytest.raises(ValueError, match=r"^surrogate\.jsonl row 2: column 'caption' holds half of a surrogate pair"):
        rows_of(CASES / "surrogate.jsonl")


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (row,) = rows_of(jsonl(tmp_path / "m.jsonl", r'{"video": "a.mp4", "caption": "\ud83d\ude00"}'))
    assert row["caption"] == "\U0001f600"


def test_further_values_are_kept_as_they_were_whatever_stands_in_other_rows(tmp_path: Path) -> None:
    assert json.loads(rows_of(CASES / "bigint_extra.jsonl")[0]["extra"]) == {"phash": 18446744073709551613}
    further = [{"m": {"a": 1}}, {"m": {"b": 2}}, {"n": 1}, {"n": 1.5}, {"n": True}, {"n": "1"}, {"n": [1, "x", None]}]
    path = jsonl(tmp_path / "m.jsonl", *(json.dumps({"video": f"{n}.mp4", **row}) for n, row in enumerate(further)))
    assert [row["extra"] for row in rows_of(path)] == [json.dumps(row) for row in further]


def test_nan_is_no_value_and_infinity_is_named(tmp_path: Path) -> None:
    assert [row["extra"] for row in rows_of(CASES / "nan_extra.parquet")] == [""]
    path = jsonl(tmp_path / "m.jsonl", '{"video": "a", "score": NaN}', '{"video": "b", "score": [Infinity]}')
    with pytest.raises(ValueError, match=r"m\.jsonl row 2: column 'score' cannot be kept.*columns\.drop=\[score\]"):
        rows_of(path)
    assert [row["extra"] for row in rows_of(path, columns=ColumnsConfig(drop=["score"]))] == ["", ""]


def test_bytes_in_place_of_names_are_refused_without_showing_them(tmp_path: Path) -> None:
    videos = pa.array([{"bytes": b"\x00" * 30_000, "path": "a.mp4"}])
    with pytest.raises(ValueError, match=r"m\.parquet: column 'video' holds bytes \(struct<bytes: binary") as refusal:
        rows_of(parquet(tmp_path / "m.parquet", video=videos))
    assert len(str(refusal.value)) < 300
    path = parquet(tmp_path / "n.parquet", thumbnail=[b"\x00\xff"])
    with pytest.raises(ValueError, match=r"column 'thumbnail' holds bytes.*columns\.drop=\[thumbnail\]"):
        rows_of(path)
    assert rows_of(path, columns=ColumnsConfig(drop=["thumbnail"]))[0]["extra"] == ""


def test_long_values_are_shortened_and_secrets_hidden(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"video,split,start\na,{'x' * 10_000},\nb,,https://user:hunter2@host/\n")
    with pytest.raises(ValueError, match="2 wrong rows") as refusal:
        rows_of(path)
    assert len(str(refusal.value)) < 500
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (Decimal("1.50"), 1.5),
        (datetime.timedelta(seconds=2, milliseconds=250), 2.25),
        (datetime.time(0, 1, 2, 500_000), 62.5),
        (7, 7.0),
        ("0:01:02.5", 62.5),
    ],
)
def test_a_start_of_any_type_of_parquet(value: Any, seconds: float, tmp_path: Path) -> None:
    (row,) = rows_of(parquet(tmp_path / "m.parquet", start=[value]))
    assert row["start"] == seconds


def test_decimals_of_the_case_and_of_further_columns(tmp_path: Path) -> None:
    (row,) = rows_of(CASES / "decimal_start.parquet")
    assert row["start"] == 1.5
    (row,) = rows_of(parquet(tmp_path / "m.parquet", score=[Decimal("0.10")], day=[datetime.date(2026, 1, 2)]))
    assert json.loads(row["extra"]) == {"score": "0.10", "day": "2026-01-02"}


def test_a_header_without_our_columns_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    for text, message in {
        "Video,text\n": r"its columns are 'Video', 'text'; nearest: 'Video'; pass columns\.video=Video",
        "videoid,contentUrl,duration,page_dir,name\n": r"nearest: 'videoid', .*columns\.video=videoid",
        "videoID,url,timestamp,caption,matching_score\n": r"nearest: 'url', 'videoID'; pass columns\.video=url",
        "video, caption\n": r"nearest: ' caption'; pass 'columns\.caption= caption'",  # as a shell takes it
        "x,y\n": r"no column 'video'; its columns are 'x', 'y'; pass columns\.video=COLUMN",
    }.items():
        path = tmp_path / "m.csv"
        path.write_text(text + "a," * text.count(",") + "b\n")
        with pytest.raises(ValueError, match=message):
            rows_of(path, needs_caption=True)
    with pytest.raises(
        ValueError, match=r"'video;caption'; the line holds ';': part the values of a \.csv with commas"
    ):
        rows_of(CASES / "semicolon.csv")


def test_the_first_twenty_wrong_rows_are_listed_in_order(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    lines = [f"v{n}.mp4,c,{'soon' if n % 3 == 0 else ''},{'x' if n % 5 == 0 else ''}\n" for n in range(1, 101)]
    path.write_text("video,caption,start,split\n" + "".join(lines))
    with pytest.raises(
        ValueError, match=r"^the first 20 wrong rows; mend the manifest, or pass rows=record"
    ) as refusal:
        rows_of(path)
    listed = [int(line.split("row ")[1].split(":")[0]) for line in str(refusal.value).splitlines()[1:]]
    assert listed == [n for n in range(1, 101) if n % 3 == 0 or n % 5 == 0][:20]


def test_recorded_rows_keep_their_place_and_say_what_is_wrong(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "m.jsonl",
        '{"video": "a.mp4", "caption": "good", "id": "x"}',
        '{"video": "b.mp4", "caption": "bad", "id": "x", "start": "soon"}',
        '{"video": "https://user:hunter2@host/c.mp4", "caption": "secret"}',
        '{"video": "d.mp4", "caption"',
        '{"video": "e.mp4", "video": "f.mp4"}',
        '{"caption": "nothing"}',
        '{"video": "g.mp4", "caption": "good"}',
    )
    said: list[str] = []
    rows = rows_of(path, rows=WrongRows.RECORD, say=said.append)
    assert [row["row"] for row in rows] == list(range(1, 8))
    assert [row["id"] for row in rows] == ["x", *(f"m.jsonl row {n}" for n in range(2, 7)), "g.mp4"]
    assert [row["video"] for row in rows] == ["a.mp4", "b.mp4", "", "", "", "", "g.mp4"]
    assert [row["caption"] for row in rows] == ["good", *[None] * 5, "good"]
    for row, word in zip(rows, ["", "soon", "credentials", "not JSON", "twice", "video is missing", ""], strict=True):
        assert word in row["problem"]
        assert "hunter2" not in str(row)
    assert "m.jsonl: 5 of 7 rows are wrong and become rejected rows of the dataset" in said


def test_texts_that_are_not_utf8_in_parquet_are_named(tmp_path: Path) -> None:
    wrong = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))
    with pytest.raises(ValueError, match=r"m\.parquet: column 'caption' holds a text that is not UTF-8"):
        rows_of(parquet(tmp_path / "m.parquet", caption=wrong))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 80, f"'{'x' * 80}'"),
        ("x" * 81, f"'{'x' * 79}..."),
        (["y" * 78], f"['{'y' * 78}']"),
        (["y" * 79], f"['{'y' * 78}..."),
    ],
)
def test_of_a_long_value_the_beginning_is_shown(value: object, text: str) -> None:
    """A text of 80 characters is shown whole with its marks; of what is longer, 80 characters."""
    assert shown(value) == text
