"""What public manifests look like, and the settings that read them: columns by name, templates, ids of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.source.config import ColumnsConfig, SourcesConfig, WrongRows
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.manifest import ReadOptions, open_manifest

WEBVID = """videoid,contentUrl,duration,page_dir,name
21179416,https://host/a.mp4,PT00H00M11S,006001_006050,Aerial shot of a coast
5629184,https://host/b.mp4,PT00H00M29S,071501_071550,"A man, walking"
"""


def read(source: Path, *, rows: WrongRows = WrongRows.STRICT, **columns: Any) -> tuple[list[dict[str, Any]], str]:
    said: list[str] = []
    options = ReadOptions(columns=ColumnsConfig(**columns), rows=rows, needs_caption=True, say=said.append)
    return [row for batch in open_manifest(source, options).batches for row in batch.to_pylist()], "\n".join(said)


@pytest.fixture
def webvid(tmp_path: Path) -> Path:
    path = tmp_path / "webvid.csv"
    path.write_text(WEBVID)
    return path


def test_columns_are_told_by_name_and_printed(webvid: Path) -> None:
    rows, said = read(webvid, video="contentUrl", caption="name", id="videoid")
    assert [(row["id"], row["video"], row["caption"]) for row in rows] == [
        ("21179416", "https://host/a.mp4", "Aerial shot of a coast"),
        ("5629184", "https://host/b.mp4", "A man, walking"),
    ]
    assert json.loads(rows[0]["extra"]) == {"duration": "PT00H00M11S", "page_dir": "006001_006050"}
    assert said == (
        "webvid.csv: columns video = 'contentUrl', caption = 'name', id = 'videoid'; "
        "kept beside them: 'duration', 'page_dir'"
    )


def test_a_template_makes_the_place_of_a_downloaded_video(webvid: Path) -> None:
    rows, said = read(webvid, video="videos/{page_dir}/{videoid}.mp4", caption="name")
    assert [row["video"] for row in rows] == [
        "videos/006001_006050/21179416.mp4",
        "videos/071501_071550/5629184.mp4",
    ]
    assert json.loads(rows[0]["extra"])["videoid"] == "21179416", "what a template uses is kept as well"
    assert "video = 'videos/{page_dir}/{videoid}.mp4'" in said


def test_a_file_that_is_not_there_is_its_own_rows_fate(webvid: Path, tmp_path: Path) -> None:
    """The ids of a manifest, of which not all were downloaded."""
    (tmp_path / "21179416.mp4").write_bytes(b"x")
    rows, _ = read(webvid, video="{videoid}.mp4", caption="name")
    sources = Sources(str(tmp_path), SourcesConfig())
    assert sources.fetch(rows[0]["video"], tmp_path).read_bytes() == b"x"
    with pytest.raises(SourceProblem) as problem:
        sources.fetch(rows[1]["video"], tmp_path)
    assert problem.value.error == "missing"
    rows, _ = read(webvid, video="s3://bucket/webvid/{videoid}.mp4", caption="name")
    assert rows[1]["video"] == "s3://bucket/webvid/5629184.mp4"


def test_numbers_in_templates(tmp_path: Path) -> None:
    table = {"n": [7, 12], "caption": ["x", "y"], "first": [50, 30], "last": [75, 45], "fps": [25.0, 30.0]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    times = {"start": "{first}/{fps}", "end": "{last}/{fps}"}
    rows, _ = read(tmp_path / "m.parquet", video="clips/{n:06d}.mp4", id="{n}", **times)
    assert [(row["video"], row["id"], row["start"], row["end"]) for row in rows] == [
        ("clips/000007.mp4", "7", 2.0, 3.0),
        ("clips/000012.mp4", "12", 1.0, 1.5),
    ]
    with pytest.raises(
        ValueError, match=r"row 1: column 'fps' holds 25\.0, and a name is made of text and whole numbers"
    ):
        read(tmp_path / "m.parquet", video="clips/{fps}.mp4")


def test_a_template_of_one_column_alone_makes_text_and_a_truth_value_is_no_name(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    pq.write_table(pa.table({"n": [7], "flag": [True], "caption": ["x"]}), file)
    rows, said = read(file, video="{n}")
    assert (rows[0]["video"], rows[0]["id"]) == ("7", "7")
    assert "columns video = '{n}', caption" in said
    with pytest.raises(ValueError, match="video must be text, got 7"):
        read(file, video="n")
    with pytest.raises(ValueError, match=r"column 'flag' holds a bool; columns\.video needs it"):
        read(file, video="{flag}.mp4")


def test_a_column_that_is_dropped_is_known_although_it_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    pq.write_table(pa.table({"video": ["a.mp4"], "caption": ["x"], "boxes": [[1.0, 2.0]], "views": [3]}), file)
    rows, said = read(file, drop=["boxes"])
    assert json.loads(rows[0]["extra"]) == {"views": 3}
    assert said == "m.parquet: columns video, caption; kept beside them: 'views'"


def test_a_row_without_a_part_of_a_template_is_named(webvid: Path) -> None:
    webvid.write_text(WEBVID + ",https://host/c.mp4,,071501_071550,Nobody\n")
    with pytest.raises(ValueError, match=r"webvid\.csv row 3: column 'videoid' is empty; columns\.video needs it"):
        read(webvid, video="{videoid}.mp4", caption="name")
    rows, _ = read(webvid, video="{videoid}.mp4", caption="name", rows=WrongRows.RECORD)
    assert [bool(row["problem"]) for row in rows] == [False, False, True]


def test_a_column_of_our_name_that_means_something_else_is_left_out(tmp_path: Path) -> None:
    """Kinetics calls its splits `train`, `validate`, `test` and `holdout`; a `label` here is a whole sentence."""
    path = tmp_path / "m.csv"
    path.write_text("video,caption,label,split\na.mp4,words,holding a potato,validate\n")
    with pytest.raises(ValueError, match=r"row 1: split must be one of train, val, test, or .*columns\.drop, got 'val"):
        read(path)
    (row,), _ = read(path, drop=["split", "label"])
    assert [row[name] for name in ("video", "caption", "label", "split", "extra")] == ["a.mp4", "words", "", "", ""]
    with pytest.raises(ValueError, match=r"columns\.drop leaves 'caption' out, and captions are required"):
        read(path, drop=["caption", "split"])
    manifest = open_manifest(path, ReadOptions(columns=ColumnsConfig(drop=["caption", "split"])))
    assert [batch.column("caption").to_pylist() for batch in manifest.batches] == [[None]]


@pytest.mark.parametrize(
    "columns",
    [{"drop": ["video"]}, {"label": "split", "drop": ["split"]}, {"times": "span", "drop": ["span"]}],
)
def test_a_column_that_is_both_named_and_left_out_is_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"columns\.drop leaves '\w+' out, and columns\.\w+ takes it"):
        ColumnsConfig(**columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video": "contentURL", "caption": "name"}, "no column 'contentURL'.*nearest: 'contentUrl'"),
        ({"video": "{videoID}.mp4", "caption": "name"}, "no column 'videoID', which columns.video names.*'videoid'"),
        ({"video": "contentUrl"}, "no column 'caption'.*nearest: 'name'; pass columns.caption=name"),
        ({"video": "contentUrl", "caption": "name", "start": "begin"}, "no column 'begin', which columns.start names"),
        ({"video": "contentUrl", "caption": "name", "drop": ["durations"]}, "no column 'durations' to explode or drop"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_the_nearest(
    columns: dict[str, Any], message: str, webvid: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read(webvid, **columns)


@pytest.mark.parametrize(("name", "mark"), [("m.csv", ";"), ("m.csv", "\t"), ("m.csv", "|"), ("m.tsv", ",")])
def test_values_parted_by_another_mark_are_noticed(name: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"video{mark}caption\na.mp4{mark}words\n")
    with pytest.raises(ValueError, match=r"part the values of a \.csv with commas, of a \.tsv with tabs"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video": "{a"}, "is no template"),
        ({"video": "{}"}, "names no column"),
        ({"video": "a{{b}}"}, "names no column"),
        ({"video": "{a!r}.mp4"}, "nothing else in braces"),
        ({"video": "{a:{b}}"}, "nothing else in braces"),
        (
            {"video": "{a:zz}.mp4"},
            r"columns\.video=\{a:zz\}\.mp4: 'zz' is no format; write \{column\} or ",
        ),
        ({"video": "{a:0999999999d}"}, "'0999999999d' is no format"),
        ({"caption": ""}, r"columns\.caption= is empty"),
        ({"times": "t", "start": "s"}, r"columns\.times holds start and end"),
    ],
)
def test_settings_that_cannot_work_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColumnsConfig(**columns)


def test_no_attribute_of_a_value_is_reached_by_a_template(webvid: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'videoid\.__class__'"):
        read(webvid, video="{videoid.__class__}.mp4", caption="name")


def test_a_column_in_other_letters_is_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video,caption,Start, label\na,b,3,x\n")
    rows, said = read(path)
    assert rows[0]["start"] is None
    assert "'Start' is not read as start (columns.start=Start would)" in said
    assert "' label' is not read as label" in said


def test_a_jsonl_file_may_name_its_columns_late(tmp_path: Path) -> None:
    """JSONL has no header: a column that only some rows have is no column that is missing."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"video": "a", "caption": "x"}\n{"video": "b", "caption": "y", "start": 1}\n{"caption": "z"}\n')
    rows, _ = read(path, rows=WrongRows.RECORD)
    assert [row["start"] for row in rows] == [None, 1.0, None]
    assert rows[2]["problem"] == "video is missing"


def test_a_table_of_which_nothing_is_left_is_refused_and_no_rows_are_made_up(tmp_path: Path) -> None:
    """Arrow gives batches of any length for no columns."""
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"^m\.parquet: columns\.drop leaves all of its columns out"):
        read(tmp_path / "m.parquet", drop=["x"], rows=WrongRows.RECORD)


def test_a_number_that_no_template_takes_is_the_problem_of_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": ["a.mp4"], "caption": ["c"], "t": [float("inf")]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"row 1: column 't' does not fit \{t:d\}: .* columns\.end needs it"):
        read(tmp_path / "m.parquet", end="{t:d} ")
