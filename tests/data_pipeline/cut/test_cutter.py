"""From a file to clips and rejections: nothing vanishes, limits hold, the same input gives the same bytes."""

import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.cut.config import ClipConfig, Codec, Crop
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.cut.result import CutResult
from tests.data_pipeline.cut.videos import decoded, numbered_video, numbers, picture, psnr, real_video, write_video
from trainer.config.keys import config_keys
from trainer.config.loader import load_config


def spans(result: CutResult) -> list[tuple[int | None, float, float]]:
    items = [(item.number, item.start, item.end) for item in [*result.clips, *result.rejected]]
    return sorted(items, key=lambda item: item[1])


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4"])
def test_candidates_of_a_real_video_cover_it_in_order(name: str) -> None:
    result = cut_clips(real_video(name), config=ClipConfig())
    found = spans(result)
    assert [number for number, *_ in found] == list(range(len(found)))
    assert found[0][1] == 0.0
    for (_, _, end), (_, start, _) in pairwise(found):
        assert 0 <= start - end < 1 / 8
    assert result.source["duration"] - found[-1][2] < 1 / 8
    for clip in result.clips:
        assert clip.frames == len(clip.source_pts) == len(decoded(clip.data))
        assert clip.source_pts == sorted(set(clip.source_pts))
        assert clip.fps_error <= 1 / 25 + 1e-9
        assert clip.measures["psnr"] > 40


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(9.9, [80]), (10.4, [41, 42]), (12.4, [80, 19]), (22.1, [80, 80, 17]), (25.0, [80, 80, 40])],
)
def test_long_shots_are_split_without_a_rest_that_is_too_short(
    tmp_path: Path, seconds: float, frames: list[int]
) -> None:
    path = numbered_video(tmp_path / "v.mp4", round(seconds * 25), width=128, height=128)
    config = ClipConfig(min_short_side=64, short_side=64)
    result = cut_clips(path, config=config)
    assert not result.rejected
    assert [clip.frames for clip in result.clips] == frames
    assert all(config.min_frames <= clip.frames <= config.max_frames for clip in result.clips)
    stored = [number for clip in result.clips for number in numbers(clip.data)]
    assert stored == [int(k * 25 / 8 + 1e-9) for k in range(len(stored))]  # no frame lost or doubled at a split
    for clip, following in pairwise(result.clips):
        assert clip.end == following.start


def test_the_same_file_gives_the_same_result_in_another_process(tmp_path: Path) -> None:
    path = real_video("bikes.mp4")
    program = (
        "import sys, hashlib; from data_pipeline.cut.cutter import *\n"
        "result = cut_clips(sys.argv[1], config=ClipConfig())\n"
        "print(hashlib.sha256(repr(result).encode()).hexdigest(), ENCODER_VERSION)"
    )
    runs = {
        subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
    assert runs.pop().split()[1] == ENCODER_VERSION


@pytest.mark.parametrize("changes", [{"codec": Codec.mjpeg}, {"bframes": 2}, {"crop": Crop.none}, {"fps": 12}])
def test_stored_frames_look_like_the_source(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = numbered_video(tmp_path / "v.mp4", 60, width=256, height=256)
    config = ClipConfig(**changes)
    (clip,) = cut_clips(path, config=config).clips
    truth = [picture(int(k * 25 / config.fps + 1e-9), 256, 256) for k in range(clip.frames)]
    for stored, true in zip(decoded(clip.data), truth, strict=True):
        assert psnr(stored, true) > 32
    assert numbers(clip.data) == [int(k * 25 / config.fps + 1e-9) for k in range(clip.frames)]


def test_a_short_shot_is_rejected_with_its_length(tmp_path: Path) -> None:
    images = [picture(n, scene=1 if n < 30 else 2) for n in range(100)]
    result = cut_clips(write_video(tmp_path / "v.mp4", images), config=ClipConfig())
    (rejection,) = result.rejected
    assert (rejection.number, rejection.reason) == (0, "too_short")
    assert rejection.measured["seconds"] == pytest.approx(1.25)
    assert [clip.number for clip in result.clips] == [1]


def test_a_cut_the_detector_may_not_report_makes_the_clip_be_refused(tmp_path: Path) -> None:
    images = [picture(n, scene=1) // (1 if n < 40 else 2) for n in range(80)]
    config = ClipConfig(cut_change=250.0, max_change=20.0)
    (rejection,) = cut_clips(write_video(tmp_path / "v.mp4", images), config=config).rejected
    assert rejection.reason == "cut_inside"
    assert float(rejection.measured["change"]) > 20.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, r"clip\.fps=0 must be at least 1"),
        ({"short_side": 255}, r"clip\.short_side=255 must be even"),
        ({"min_seconds": 0.01}, r"clip\.min_seconds=0\.01 is less than one frame"),
        ({"max_seconds": 3.0}, r"clip\.max_seconds=3\.0 must be at least twice clip\.min_seconds=2\.0"),
        ({"max_black": 1.5}, r"clip\.max_black=1\.5 is a share"),
        ({"crf": 60}, r"clip\.crf=60 must lie between 0 and 51"),
        ({"preset": "quick"}, r"clip\.preset='quick' is not an x264 preset; use one of ultrafast"),
        ({"min_motion": 9.0, "max_motion": 5.0}, r"clip\.min_motion=9\.0 exceeds"),
        ({"max_aspect": 0.5}, r"clip\.max_aspect=0\.5"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipConfig(**changes)


def test_every_setting_has_a_meaning_and_can_be_set_by_word() -> None:
    meanings = {key: note for key, _, _, note in config_keys(ClipConfig)}
    assert set(meanings) == {item.name for item in fields(ClipConfig)}
    assert all(len(note) > 15 for note in meanings.values())
    config = load_config(ClipConfig, overrides=["crop=none", "codec=mjpeg", "letterbox=keep", "max_seconds=5"])
    assert (config.crop, config.codec, config.max_seconds) == (Crop.none, Codec.mjpeg, 5.0)
