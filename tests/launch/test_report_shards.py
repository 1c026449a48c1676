"""launch/report_shards.py on a dataset of real videos: the page, where it may lie, and what it must not replace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch import report_shards
from tests.launch.dataset_files import clips_of, content

FEW = ["--clips", "2", "--pictures", "2", "--examples", "1"]


def test_a_page_inside_its_dataset_is_written_over_by_the_same_command(real_shards: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(real_shards, tmp_path / "shards")
    before, output = content(shards), shards / "report.html"
    for _ in range(2):
        assert report_shards.main(["--shards", str(shards), "--output", str(output), *FEW]) == 0
        page = output.read_text("utf-8")
        assert f"2 of {clips_of(shards).total()} clips" in page
        output.write_text("an older page")
    output.unlink()
    assert content(shards) == before


def test_a_page_inside_the_folder_of_videos_is_written_over_but_no_video(
    real_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest lies there as well, as `captions.csv` does in a folder that is a source itself."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "captions.csv", "a.txt"):
        (folder / name).write_bytes(b"precious")
        link = tmp_path / f"{name}.html"
        link.hardlink_to(folder / name)
        words = ["--shards", str(real_shards), "--source", str(folder), "--output", str(link)]
        assert report_shards.main(words) == 2
        assert f"is the same file as one of --source {folder}" in capsys.readouterr().err
        assert (folder / name).read_bytes() == b"precious"
    source = shutil.copy(real_shards.parent / "videos.csv", folder)
    words = ["--shards", str(real_shards), "--source", source, "--output", str(folder / "report.html"), *FEW]
    for _ in range(2):
        assert report_shards.main(words) == 0
