"""Opening, scanning and sampling: which frame is shown when, against ffprobe, frame numbers and plain decoding."""

import os
import random
from fractions import Fraction
from itertools import count as counting
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.geometry import Resizer
from data_pipeline.cut.sampling import Break, Grid, ShownFrame, plan_samples, planned_samples
from data_pipeline.cut.sequential import SequentialSamples
from data_pipeline.cut.video import UndecodableVideo, VideoSource
from tests.data_pipeline.cut.videos import ffprobe_times, numbered_video, numbers, picture, real_video, write_video

# Keeps everything: these tests are about times, not about quality.
OPEN = ClipConfig(max_frozen=1.0, min_motion=0.0, max_change=255.0, cut_change=255.0, min_psnr=0.0)


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


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.avi", "mpeg4", {"qmin": "2", "qmax": "3"}),  # no presentation times in the container
        ("v.avi", "mpeg4", {"qmin": "2", "qmax": "3", "bf": "2"}),
        ("v.avi", "libx264", {"bf": "3", "preset": "fast"}),
        ("v.webm", "libvpx-vp9", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),  # invisible frames
        ("v.ts", "libx264", {}),  # starts at 1.4 s
        ("v.mp4", "libx264", {"bf": "3", "preset": "fast"}),
        ("v.mkv", "mjpeg", {}),
        ("v.mpg", "mpeg2video", {"qmin": "2", "qmax": "3", "bf": "2"}),
        ("v.flv", "flv1", {"qmin": "2", "qmax": "3"}),
    ],
)
def test_codecs_and_containers(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    kinds: dict[str, Any] = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {}
    path = numbered_video(tmp_path / name, 60, codec=codec, options=options, **kinds)
    (clip,) = cut_clips(path, config=OPEN).clips
    # Frames of an AVI are dated by their order alone, the first at 0; ffprobe gives B-frames there no time.
    first = 0.0 if name == "v.avi" else ffprobe_times(path)[0]
    assert clip.start == pytest.approx(first, abs=1e-6)
    assert clip.source_pts == pytest.approx([first + n / 25 for n in numbers(clip.data)], abs=1.1e-3)
    assert numbers(clip.data) == [int(k * 25 / 8 + 1e-9) for k in range(19)]


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


@pytest.mark.parametrize(("start", "end"), [(9.0, 12.0), (3.0, 2.0), (2.0, 2.0)])
def test_a_window_outside_the_source_is_said_to_be(tmp_path: Path, start: float, end: float) -> None:
    path = numbered_video(tmp_path / "v.mp4", 100)
    (rejection,) = cut_clips(path, start=start, end=end, config=OPEN).rejected
    assert (rejection.number, rejection.reason) == (None, "outside_source")
    if start == 9.0:
        assert rejection.measured["source_end"] == pytest.approx(3.96)


def test_a_source_slower_than_the_target_is_rejected_whole(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 40, fps=5)
    result = cut_clips(path, config=OPEN)
    (rejection,) = result.rejected
    assert (rejection.number, rejection.reason) == (None, "fps_too_low")
    assert rejection.measured["fps"] == pytest.approx(5.0)
    assert not result.clips


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


def cut_off(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def audio(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        image = container.add_stream("mjpeg", rate=1) if cover else None
        if image is not None:
            image.width, image.height, image.pix_fmt = 320, 256, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
            container.mux(image.encode(frame))
            container.mux(image.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 48000
        for k in range(20):
            samples.pts = 1024 * k
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def broken(folder: Path, kind: str) -> Path:
    path = folder / "broken.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is no video.\n" * 100)
    elif kind == "zeros":
        path.write_bytes(bytes(100_000))
    elif kind == "no index":
        cut_off(numbered_video(path, 60), 0.6)
    elif kind == "header only":
        numbered_video(path, 60, container_options={"movflags": "faststart"})
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "audio":
        audio(path)
    elif kind == "audio with a cover":
        audio(path, cover=True)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "playlist":  # would make the demuxer open other files
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{real_video('bikes.mp4')}\n#EXT-X-ENDLIST\n")
    elif kind == "concat script":
        path.write_text(f"ffconcat version 1.0\nfile '{real_video('bikes.mp4')}'\n")
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "zeros",
        "no index",
        "header only",
        "audio",
        "audio with a cover",
        "folder",
        "pipe",
        "playlist",
        "concat script",
        "absent",
    ],
)
def test_what_is_no_video_is_said_to_be_undecodable(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UndecodableVideo, match=r"broken\.mp4: ") as caught:
        cut_clips(broken(tmp_path, kind), config=OPEN)
    assert caught.value.cause == "undecodable"


def test_one_frame_is_too_short(tmp_path: Path) -> None:
    (rejection,) = cut_clips(numbered_video(tmp_path / "v.mp4", 1), config=OPEN).rejected
    assert rejection.reason == "too_short"


def test_an_endless_source_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 100)
    config = ClipConfig(max_source_seconds=3.0)
    (rejection,) = cut_clips(path, config=config).rejected
    assert (rejection.number, rejection.reason) == (None, "too_long")
    assert cut_clips(path, start=0.5, end=3.0, config=config).clips  # a window of it may be short enough


def packets(path: Path) -> list[tuple[int, int, bool]]:
    """Byte position, size and keyframe flag of each video packet."""
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size]


def with_zeroed_packet(path: Path, number: int) -> Path:
    position, size, _ = packets(path)[number]
    data = bytearray(path.read_bytes())
    data[position + size // 3 : position + size] = bytes(size - size // 3)
    path.write_bytes(data)
    return path


GOPS = {"g": "50", "keyint_min": "50", "sc_threshold": "0", "bf": "2", "preset": "veryfast"}


@pytest.mark.parametrize("victim", [50, 58, 59, 60, 61, 62, 69, 110, 149])
def test_damage_costs_its_group_of_pictures_and_nothing_damaged_is_stored(tmp_path: Path, victim: int) -> None:
    # 200 frames in 4 groups of 50; all stored frames must be those of the undamaged file.
    clean = numbered_video(tmp_path / "clean.mp4", 200, options=GOPS)
    (reference,) = cut_clips(clean, config=OPEN).clips
    spoiled = tmp_path / "spoiled.mp4"
    spoiled.write_bytes(clean.read_bytes())
    result = cut_clips(with_zeroed_packet(spoiled, victim), config=ClipConfig(**{**vars(OPEN), "max_damage": 0.6}))
    damaged = [item for item in result.rejected if item.reason == "damaged"]
    if not damaged:  # a frame that nothing needs: neither decoded nor missed
        assert victim in (59, 61, 149)
        assert [clip.data for clip in result.clips] == [reference.data]
        return
    assert len(damaged) == 1
    assert damaged[0].start <= victim / 25 <= damaged[0].end <= (victim // 50 + 1) * 2.0 + 0.13
    truth = dict(zip(reference.source_pts, numbers(reference.data), strict=True))
    kept = [pair for clip in result.clips for pair in zip(clip.source_pts, numbers(clip.data), strict=True)]
    assert kept
    for pts, number in kept:
        assert number == truth[pts] == round(pts * 25)
        assert not damaged[0].start <= pts < damaged[0].end
    lost = set(truth) - {pts for pts, _ in kept}
    accounted = [(item.start - 0.04, item.end) for item in result.rejected]
    assert all(any(a <= pts <= b for a, b in accounted) for pts in lost)  # nothing vanishes without a record


def test_much_damage_is_quarantined(tmp_path: Path) -> None:
    path = with_zeroed_packet(numbered_video(tmp_path / "v.mp4", 200, options={"g": "200"}), 20)
    with pytest.raises(UndecodableVideo, match=r"lost to decode errors, more than clip\.max_damage=0\.25; first: "):
        cut_clips(path, config=OPEN)


def test_a_file_that_ends_early_gives_what_is_there_and_says_what_is_missing(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 200, options=GOPS, container_options={"movflags": "faststart"})
    position, size, _ = packets(path)[120]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    result = cut_clips(path, config=OPEN)
    stored = [number for clip in result.clips for number in numbers(clip.data)]
    assert stored
    assert stored == [int(k * 25 / 8 + 1e-9) for k in range(len(stored))]
    assert max(stored) < 120
    (missing,) = [item for item in result.rejected if item.reason == "truncated"]
    assert missing.end == pytest.approx(8.0)
    assert missing.start == pytest.approx(120 / 25, abs=0.1)


def test_a_stream_that_begins_without_a_keyframe_begins_at_the_first_one(tmp_path: Path) -> None:
    whole = numbered_video(tmp_path / "whole.mkv", 150, options=GOPS)
    headless = tmp_path / "headless.mkv"
    with av.open(str(whole)) as source, av.open(str(headless), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 20:
                packet.stream = stream
                target.mux(packet)
    result = cut_clips(headless, config=ClipConfig(**{**vars(OPEN), "max_damage": 0.5}))
    (clip,) = result.clips
    assert numbers(clip.data)[0] == 50
    assert [item.reason for item in result.rejected] == ["damaged"]


def test_an_image_sequence_in_one_scene_has_no_sample_past_its_last_frame(tmp_path: Path) -> None:
    for count in (51, 52, 53, 54):
        path = write_video(tmp_path / f"{count}.mp4", [picture(n) for n in range(count)])
        (clip,) = cut_clips(path, config=OPEN).clips
        assert clip.frames == len([k for k in range(99) if k / 8 <= (count - 1) / 25])
