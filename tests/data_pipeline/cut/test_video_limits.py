"""Videos that lie exactly on a limit: the shortest clip, the most damage, the ends of a window."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.encode import PEAK, _psnr
from data_pipeline.cut.video import UndecodableVideo
from tests.data_pipeline.cut.videos import (
    GOPS,
    OPEN,
    ffprobe_times,
    numbered_video,
    numbers,
    packets,
    with_zeroed_packet,
)


@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])  # the planned and the sequential way
@pytest.mark.parametrize(("frames", "kept"), [(15, []), (16, [16]), (17, [17])])
def test_a_clip_of_the_fewest_frames_is_one(name: str, frames: int, kept: list[int], tmp_path: Path) -> None:
    """`min_seconds=2.0` are 16 frames at 8 a second, of which the last begins after 1.875 s."""
    path = numbered_video(tmp_path / name, frames, fps=8, width=64, height=64)
    result = cut_clips(path, config=ClipConfig(**{**vars(OPEN), "min_short_side": 64}))
    assert [clip.frames for clip in result.clips] == kept
    assert [item.reason for item in result.rejected] == ([] if kept else ["too_short"])


def test_damage_of_several_places_is_one_sum(tmp_path: Path) -> None:
    """Two of four groups of pictures are lost, the half of it or a little more: each alone would be let pass."""
    path = numbered_video(tmp_path / "v.mp4", 200, options=GOPS)
    for victim in (60, 160):
        with_zeroed_packet(path, victim)
    strict, mild = (ClipConfig(**{**vars(OPEN), "max_damage": share}) for share in (0.4, 0.7))
    with pytest.raises(UndecodableVideo, match=r"clip\.max_damage=0\.4"):
        cut_clips(path, config=strict)
    result = cut_clips(path, config=mild)
    assert [item.reason for item in result.rejected if item.reason != "too_short"] == ["damaged", "damaged"]
    for clip in result.clips:
        assert numbers(clip.data) == [round(pts * 25) for pts in clip.source_pts]


def test_where_frames_are_only_counted_nothing_behind_a_damage_is_believed(tmp_path: Path) -> None:
    """An AVI dates its frames by their order, and a frame that was lost makes all after it come too early."""
    options = {"qmin": "2", "qmax": "3", "g": "25"}
    path = numbered_video(tmp_path / "v.avi", 200, codec="mpeg4", options=options)
    data = bytearray(path.read_bytes())
    for victim in (110, 111, 112):
        position, size, _ = packets(path)[victim]
        data[position : position + size + 8] = bytes(size + 8)
    path.write_bytes(data)
    result = cut_clips(path, config=ClipConfig(**{**vars(OPEN), "max_damage": 0.9}))
    (damaged,) = [item for item in result.rejected if item.reason == "damaged"]
    assert damaged.end > 7.7
    assert result.clips
    for clip in result.clips:
        assert numbers(clip.data) == [round(pts * 25) for pts in clip.source_pts]
        assert clip.end <= damaged.start <= 112 / 25


def test_a_window_that_was_asked_for_is_not_truncated(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 200, options=GOPS, container_options={"movflags": "faststart"})
    position, size, _ = packets(path)[120]
    path.write_bytes(path.read_bytes()[: position + size])
    assert "truncated" in {item.reason for item in cut_clips(path, config=OPEN).rejected}
    result = cut_clips(path, start=0.0, end=2.5, config=OPEN)
    assert not result.rejected
    assert [clip.frames for clip in result.clips] == [20]


@pytest.mark.parametrize(("missing", "told"), [(20, False), (30, True)])
def test_a_second_that_is_missing_at_the_end_is_worth_a_record(missing: int, told: bool, tmp_path: Path) -> None:
    """0.8 s and 1.2 s: less is what headers are wrong by anyway."""
    options = {**GOPS, "bf": "0"}
    path = numbered_video(tmp_path / "v.mp4", 100, options=options, container_options={"movflags": "faststart"})
    position = packets(path)[100 - missing][0]
    path.write_bytes(path.read_bytes()[:position])
    reasons = {item.reason for item in cut_clips(path, config=OPEN).rejected}
    assert ("truncated" in reasons) is told


@pytest.mark.parametrize("name", ["v.ts", "v.mkv"])
def test_a_window_that_opens_before_the_source_opens_with_it(name: str, tmp_path: Path) -> None:
    """A transport stream begins at 1.4 s; the first picture is shown at the first sampling time then."""
    path = numbered_video(tmp_path / name, 75, options={"g": "25"}, pts=[n + 35 for n in range(75)])
    first = ffprobe_times(path)[0]
    assert first > 1.0
    (clip,) = cut_clips(path, start=0.3, end=first + 2.5, config=OPEN).clips
    assert clip.start == pytest.approx(first, abs=1e-6)
    assert numbers(clip.data) == [int(k * 25 / 8 + 1e-6) for k in range(20)]


def test_a_window_that_opens_a_rounded_microsecond_early_opens_with_its_frame(tmp_path: Path) -> None:
    """A manifest says 0.033333 where the frame is shown at 1/30."""
    path = numbered_video(tmp_path / "v.mp4", 90, fps=30, width=128, height=128)
    config = ClipConfig(**{**vars(OPEN), "min_short_side": 64})
    for start in (0.033333, 1 / 30, 0.033334):
        (clip,) = cut_clips(path, start=start, end=2.6, config=config).clips
        assert numbers(clip.data)[0] == 1


def test_a_row_may_be_the_last_frame_alone(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 100)
    copy = shutil.copy(path, tmp_path / "copy.mp4")
    (rejection,) = cut_clips(copy, start=3.96, config=OPEN).rejected
    assert rejection.reason == "too_short", "there is a frame at 3.96 s, so it is inside"
    (rejection,) = cut_clips(copy, start=3.97, config=OPEN).rejected
    assert rejection.reason == "outside_source"


@pytest.mark.parametrize(("error", "decibels"), [(0.0, 100.0), (PEAK / 1e10, 100.0), (PEAK / 1e4, 40.0), (PEAK, 0.0)])
def test_psnr_of_a_perfect_copy_is_finite(error: float, decibels: float) -> None:
    assert _psnr(error) == pytest.approx(decibels)
    assert Fraction(PEAK) == 255**2
