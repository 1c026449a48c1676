"""launch/make_manifest.py on real videos: the rows, and a manifest that lies in the folder of its videos."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from data_pipeline.source.manifest import open_manifest
from launch import make_manifest
from tests.data_pipeline.dataset.tiny_dataset import real_video

NAMES = ("videoSRC01_640x272_25.mp4", "videoSRC02_176x144_30.mp4")


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """Two real videos with the names of the collection."""
    folder = tmp_path / "MCL-JCV"
    folder.mkdir()
    for name, video in zip(NAMES, ("bikes.mp4", "carphone_pristine.mp4"), strict=True):
        shutil.copy(real_video(video), folder / name)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_among_its_videos_is_written_over_by_the_same_command(
    sequences: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    output = sequences / f"captions{suffix}"
    words = ["mcl-jcv", "--partial", "--source", f"file://{sequences}", "--output", str(output)]
    written = []
    for _ in range(2):
        assert make_manifest.main(words) == 0
        assert capsys.readouterr().out == f"{output}: 2 rows (test 2)\n"
        written.append(output.read_bytes())
    assert written[0] == written[1]
    if suffix == ".csv":
        with output.open(newline="", encoding="utf-8") as file:
            assert [row["video"] for row in csv.DictReader(file)] == list(NAMES)
    rows = [row for batch in open_manifest(sequences).batches for row in batch.to_pylist()]
    assert [row["video"] for row in rows] == list(NAMES)


def test_a_video_is_never_written_over(sequences: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = sequences / NAMES[0]
    before, link = video.read_bytes(), sequences / "link.csv"
    link.symlink_to(video)
    assert make_manifest.main(["mcl-jcv", "--partial", "--source", str(sequences), "--output", str(link)]) == 2
    assert f"is the same file as one of --source {sequences}" in capsys.readouterr().err
    assert video.read_bytes() == before


def test_a_manifest_is_not_sorted_into_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read while the output is written, so that its rows would be lost."""
    source = tmp_path / "windows.csv"
    source.write_text("video,start,end,caption\na.mp4,0,2,c\nb.mp4,0,2,c\na.mp4,2,4,c\n")
    before, link = source.read_bytes(), tmp_path / "sorted.csv"
    link.symlink_to(source)
    for output in (source, link):
        assert make_manifest.main(["sort", "--source", str(source), "--output", str(output)]) == 2
        assert f"--output {output} is the same file as one of --source {source}" in capsys.readouterr().err
        assert source.read_bytes() == before


def test_an_official_list_in_another_encoding_is_refused_by_file_line_and_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classInd.txt").write_bytes("1 YoYo\n2 V\u00e9lo\n".encode("latin-1"))
    words = ["ucf101", "--source", str(tmp_path), "--lists", str(tmp_path), "--output", str(tmp_path / "ucf.csv")]
    assert make_manifest.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = f"{tmp_path / 'classInd.txt'} line 2 holds the byte 0xe9, which is not UTF-8; save the file as UTF-8"
    assert line == f"launch/make_manifest.py: {said}"
