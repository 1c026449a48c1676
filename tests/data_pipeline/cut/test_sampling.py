"""Sampling: which frame is shown when, against ffprobe, frame numbers and plain decoding."""

import random
from fractions import Fraction
from itertools import count as counting
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.geometry import Resizer
from data_pipeline.cut.sampling import Break, Grid, ShownFrame, plan_samples, planned_samples
from data_pipeline.cut.sequential import SequentialSamples
from data_pipeline.cut.video import VideoSource
from tests.data_pipeline.cut.videos import (
    OPEN,
    ffprobe_times,
    numbered_video,
    numbers,
    picture,
    real_video,
    write_video,
)


def vfr_ticks(count: int, seed: int = 0) -> list[int]:
    """Milliseconds with gaps of 10 to 110 ms."""
    draw = random.Random(seed)
    ticks = [0]
    for _ in range(count - 1):
        ticks.append(ticks[-1] + draw.randint(10, 110))
    return ticks


def vfr_video(path: Path, count: int = 90, **kinds: Any) -> Path:
    return numbered_video(path, count, pts=vfr_ticks(count), time_base=Fraction(1, 1000), **kinds)


def test_grid_agrees_with_exact_fractions() -> None:
    draw = random.Random(1)
    for _ in range(300):
        base = Fraction(draw.choice([1, 1001]), draw.choice([8, 25, 1000, 30000, 90000]))
        t0 = Fraction(draw.randint(0, 5000), 997)
        end = t0 + Fraction(draw.randint(1, 400), 100) if draw.random() < 0.5 else None
        grid = Grid(8, t0, end, base)
        tick = draw.randint(0, round(10 / base))
        until = tick + draw.randint(1, max(1, round(1 / base)))
        limit = 10_000 if end is None else next(k for k in counting() if t0 + Fraction(k, 8) >= end)
        assert grid.count == (None if end is None else limit)
        slow = [
            k
            for k in range(max(0, int((tick * base - t0) * 8) - 2), int((until * base - t0) * 8) + 3)
            if tick * base <= t0 + Fraction(k, 8) + Fraction(1, 10**6) < until * base and 0 <= k < limit
        ]
        assert list(grid.shown(tick, until)) == slow
        last = [k for k in range(200) if abs(t0 + Fraction(k, 8) - tick * base) <= Fraction(1, 10**6) and k < limit]
        assert list(grid.shown(tick, None)) == last


@pytest.mark.parametrize("late", range(-12, 13))
def test_a_frame_up_to_a_microsecond_late_is_shown_at_its_sampling_time(late: int) -> None:
    """Ticks of 100 ns, ten of which are the microsecond."""
    grid = Grid(8, Fraction(123_456, 10**7), None, Fraction(1, 10**7))
    tick = 123_456 + 5 * 1_250_000 + late  # about the sampling time k = 5
    first = 5 if late <= 10 else 6
    assert list(grid.shown(tick, tick + 1_250_000)) == [first]
    assert list(grid.shown(tick, None)) == ([5] if -10 <= late <= 10 else [])


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_frames_are_the_ones_shown_at_each_eighth_of_a_second(tmp_path: Path, container: str) -> None:
    path = vfr_video(tmp_path / f"v.{container}", options={"bf": "2", "preset": "veryfast"})
    shown = ffprobe_times(path)
    result = cut_clips(path, config=OPEN)
    (clip,) = result.clips
    expected = [max(t for t in shown if t <= clip.start + k / 8 + 1e-6) for k in range(clip.frames)]
    assert clip.source_pts == pytest.approx(expected, abs=1e-6)
    assert numbers(clip.data) == [shown.index(t) for t in expected]
    assert clip.fps_error == pytest.approx(max(abs(t - clip.start - k / 8) for k, t in enumerate(expected)), abs=1e-6)
    assert clip.start + clip.frames / 8 > shown[-1] >= clip.start + (clip.frames - 1) / 8  # to the end, not beyond
    assert len(set(numbers(clip.data))) == clip.frames


def planned_and_sequential(path: Path, start: Fraction | None = None) -> tuple[list[Any], list[Any]]:
    def simple(item: ShownFrame[Any] | Break) -> tuple[Any, ...]:
        if isinstance(item, Break):
            return item.reason, item.start, item.end
        planes = [
            np.frombuffer(memoryview(p), np.uint8).reshape(p.height, -1)[:, : p.width] for p in item.picture.planes
        ]
        return item.time, item.pts, [plane.tobytes() for plane in planes]

    config = ClipConfig(min_short_side=64)
    with VideoSource(path) as source:
        scan = source.scan(start, None, 1000)
        plan = plan_samples(source, scan, 8, start, None)
        planned = [simple(item) for item in planned_samples(source, plan, Resizer(config, source.sar))]
    with VideoSource(path) as source:
        opening = float(scan.ticks[0] * source.time_base)
        take = Resizer(config, source.sar)
        samples = SequentialSamples(
            *(source, 8, start, None),
            head=None,
            since=start,
            prompt=False,
            opening=opening,
            take=take,
            max_seconds=1000,
        )
        return planned, [simple(item) for item in samples]


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"])
def test_skipping_unwanted_frames_changes_no_pixel(name: str) -> None:
    planned, sequential = planned_and_sequential(real_video(name))
    assert len(planned) > 30
    assert planned == sequential


def test_skipping_is_exact_in_deep_b_pyramids_and_windows(tmp_path: Path) -> None:
    path = vfr_video(tmp_path / "v.mp4", options={"bf": "7", "b-pyramid": "normal", "refs": "5", "preset": "medium"})
    planned, sequential = planned_and_sequential(path, Fraction(7, 3))
    assert planned == sequential
    assert planned[0][0] == pytest.approx(7 / 3)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx265", {"preset": "fast", "x265-params": "log-level=none:bframes=4:pools=1:frame-threads=1"}),
        ("mpeg4", {"bf": "2", "qmin": "2", "qmax": "3"}),
        ("mpeg2video", {"bf": "2", "qmin": "2", "qmax": "3"}),
    ],
)
def test_skipping_is_exact_in_other_codecs(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    path = numbered_video(tmp_path / "v.mp4", 60, codec=codec, options=options)
    planned, sequential = planned_and_sequential(path)
    assert len(planned) == 19
    assert planned == sequential


@pytest.mark.parametrize("container", ["mp4", "avi"])
@pytest.mark.parametrize("start", [0.0, 1.0, 2.36, 3.999])
def test_a_window_begins_and_ends_where_it_is_told(tmp_path: Path, start: float, container: str) -> None:
    path = numbered_video(tmp_path / f"v.{container}", 175, options={"g": "50", "bf": "2", "preset": "veryfast"})
    (clip,) = cut_clips(path, start=start, end=start + 2.5, config=OPEN).clips
    assert clip.start == pytest.approx(start)
    assert numbers(clip.data) == [int((start + k / 8) * 25 + 1e-6) for k in range(20)]
    assert clip.end <= start + 2.5 + 1e-9


def test_a_source_at_the_target_rate_is_kept_frame_for_frame(tmp_path: Path) -> None:
    (clip,) = cut_clips(numbered_video(tmp_path / "v.mp4", 24, fps=8), config=OPEN).clips
    assert numbers(clip.data) == list(range(24))
    assert clip.fps_error == 0.0


@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])  # the planned and the sequential way
def test_a_pause_of_a_variable_rate_source_parts_clips_instead_of_repeating_a_frame(tmp_path: Path, name: str) -> None:
    ticks = [40 * n for n in range(60)] + [40 * 60 + 900 + 40 * n for n in range(60)]
    codec = {"v.mkv": "libx264", "v.webm": "libvpx-vp9"}[name]
    options = {"deadline": "realtime", "cpu-used": "8"} if codec != "libx264" else {}
    path = numbered_video(tmp_path / name, 120, pts=ticks, time_base=Fraction(1, 1000), codec=codec, options=options)
    result = cut_clips(path, config=OPEN)
    assert [numbers(clip.data)[0] for clip in result.clips] == [0, 60 + 1]
    for clip in result.clips:
        assert len(set(numbers(clip.data))) == clip.frames
    (gap,) = result.rejected
    assert (gap.number, gap.reason) == (1, "fps_too_low")
    assert gap.measured["gap"] == pytest.approx(0.94)
    assert (gap.start, gap.end) == (2.5, pytest.approx(3.375))


def test_frames_a_decoder_gives_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    # A stream that does not say how far it reorders; the decoder must guess, and first guesses too little.
    path = numbered_video(
        tmp_path / "v.mp4", 60, options={"bf": "3", "b-pyramid": "normal", "preset": "fast", "x264-params": "no-vui=1"}
    )
    (clip,) = cut_clips(path, config=OPEN).clips
    assert numbers(clip.data) == [int(k * 25 / 8 + 1e-9) for k in range(19)]


def test_an_image_sequence_in_one_scene_has_no_sample_past_its_last_frame(tmp_path: Path) -> None:
    for count in (51, 52, 53, 54):
        path = write_video(tmp_path / f"{count}.mp4", [picture(n) for n in range(count)])
        (clip,) = cut_clips(path, config=OPEN).clips
        assert clip.frames == len([k for k in range(99) if k / 8 <= (count - 1) / 25])
