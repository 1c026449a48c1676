"""launch/drop_duplicates.py on a dataset in which a real video has two rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch import drop_duplicates, verify_shards
from tests.launch.dataset_files import clips_of, content


def test_the_clips_of_the_second_row_of_a_video_are_dropped(
    real_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = shutil.copytree(real_shards, tmp_path / "shards")
    before, clips = content(shards), clips_of(shards)
    assert clips["bikes"] == clips["again"] >= 2
    words = ["--shards", str(shards), "--distance", "0"]
    assert drop_duplicates.main([*words, "--dry-run"]) == 0
    assert f"would drop {clips['again']} of {clips.total()} clips" in capsys.readouterr().out
    assert content(shards) == before
    assert drop_duplicates.main(words) == 0
    assert f"dropped {clips['again']} of {clips.total()} clips" in capsys.readouterr().out
    assert clips_of(shards) == {name: count for name, count in clips.items() if name != "again"}
    assert verify_shards.main(["--shards", str(shards)]) == 0
