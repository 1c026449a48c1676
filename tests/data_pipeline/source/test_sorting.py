"""A sorted manifest has the same rows, those of one video beside each other."""

from __future__ import annotations

import csv
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.source.sorting import Together, bring_together
from launch import make_manifest

ROWS = [
    {"video": "http://h/b.mp4", "start": "0", "caption": 'one, "two"'},
    {"video": "http://h/a.mp4", "start": "1", "caption": "é\u3000"},
    {"video": "http://h/b.mp4", "start": "2", "caption": " x "},
    {"video": "http://h/c.mp4", "start": "3", "caption": ""},
    {"video": "http://h/a.mp4", "start": "4", "caption": "last"},
]
NAMES = ["m.csv", "n.csv"]
SORTED = [ROWS[position] for position in (0, 2, 1, 4, 3)]


def write(path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(ROWS[0]), *(row.values() for row in ROWS)])
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(row) + "\r\n" for row in [list(ROWS[0]), *(list(r.values()) for r in ROWS)]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open(newline="") as file:
        if path.suffix == ".tsv":
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_of_a_video_stand_in_the_place_of_its_first(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"m{suffix}")
    output = tmp_path / f"sorted{suffix}"
    assert bring_together(source, output) == Together(rows=5, videos=3, moved=4)
    assert read(output) == SORTED
    assert len(list(groupby(row["video"] for row in read(output)))) == 3
    assert bring_together(output, tmp_path / f"again{suffix}").moved == 0


def test_relative_videos_stay_in_the_folder_of_their_manifest(tmp_path: Path) -> None:
    source = tmp_path / "m.csv"
    source.write_text("video,caption\na.mp4,c\n")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"m\.csv has relative videos.*let --output lie in"):
        bring_together(source, tmp_path / "other" / "n.csv")
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize(
    ("content", "names", "said"),
    [
        ("url,caption\nhttp://h/a.mp4,c\n", NAMES, "has no column 'video', only 'url', 'caption'; name the column"),
        ('video\n"a\n', NAMES, "is not valid CSV"),
        ("video\na\n", ["m.csv", "x.tsv"], "must end in .csv"),
        ("video\na\n", ["m.csv", "m.csv"], "is the same file as"),
        ("video\na\n", ["none.csv", "n.csv"], "is no file"),
        ("", NAMES, "has no column"),
    ],
)
def test_a_wrong_input_is_refused_in_one_line(
    tmp_path: Path, content: str, names: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "m.csv"
    source.write_text(content)
    places = [str(tmp_path / name) for name in names]
    assert make_manifest.main(["sort", "--source", places[0], "--output", places[1]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert source.read_text() == content
    assert not (tmp_path / "n.csv").exists()


def test_the_column_of_the_videos_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "m.csv"
    source.write_text("url,n\nhttp://h/a.mp4,1\nhttp://h/b.mp4,2\nhttp://h/a.mp4,3\n")
    output = tmp_path / "n.csv"
    assert make_manifest.main(["sort", "--video", "url", "--source", str(source), "--output", str(output)]) == 0
    assert output.read_text().splitlines()[1:] == ["http://h/a.mp4,1", "http://h/a.mp4,3", "http://h/b.mp4,2"]
    assert capsys.readouterr().out == f"{output}: 3 rows of 2 videos, 2 at another position\n"


@pytest.mark.parametrize(("name", "mark"), [("m.csv", ","), ("m.tsv", "\t")])
def test_the_videos_may_be_the_last_column_and_a_row_without_one_stays(tmp_path: Path, name: str, mark: str) -> None:
    lines = ["n,video", "1,http://h/a.mp4", "2,http://h/b.mp4", "3", "4,http://h/a.mp4", "5,"]
    source, output = tmp_path / name, tmp_path / f"sorted-{name}"
    source.write_text("".join(line.replace(",", mark) + "\n" for line in lines))
    assert bring_together(source, output) == Together(rows=5, videos=3, moved=3)
    order = (0, 1, 4, 2, 3, 5)
    assert output.read_text() == "".join(lines[place].replace(",", mark) + "\n" for place in order)


def test_a_carriage_return_in_a_value_ends_no_row(tmp_path: Path) -> None:
    rows = [
        ["video", "caption"],
        ["http://h/a.mp4", "two\rlines"],
        ["http://h/b.mp4", "a\r\nb"],
        ["http://h/a.mp4", "\r"],
    ]
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    bring_together(tmp_path / "m.csv", tmp_path / "n.csv")
    with (tmp_path / "n.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [rows[0], rows[1], rows[3], rows[2]]


def test_a_line_of_blanks_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"video": "a"}\n  \t\n{"video": "b"}\n\n{"video": "a", "n": 2}')
    bring_together(tmp_path / "m.jsonl", tmp_path / "n.jsonl")
    assert (tmp_path / "n.jsonl").read_text() == '{"video": "a"}\n{"video": "a", "n": 2}\n{"video": "b"}\n'


def test_a_wrong_line_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('\n{"video": "a"}\n\n{"url": "b"}\n')
    with pytest.raises(ValueError, match=r"^m\.jsonl line 4 has no 'video'"):
        bring_together(tmp_path / "m.jsonl", tmp_path / "n.jsonl")
