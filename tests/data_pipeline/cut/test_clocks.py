"""Clocks that restart, repeat or stand still, places that a seek misses, tracks beside others: which pictures are cut.

Each frame has its number in the picture, and each recording begins with 0, so expected numbers follow from the times.
"""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.stream import Disposition

from data_pipeline.cut import cutter
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.result import CutResult
from data_pipeline.cut.video import UndecodableVideo, VideoSource
from tests.data_pipeline.cut.videos import GOPS, OPEN, ffprobe_times, numbered_video, numbers, picture

CASES = Path(__file__).parent / "cases"
FLV_HEADER = 13  # bytes before the first tag (Adobe Flash Video File Format 10.1, annex E.2 and E.3)


def shown(times: Iterable[float], fps: int = 25) -> list[int]:
    """Numbers of the frames that a recording of `fps` shows at times since its beginning, in seconds."""
    return [int(time * fps + 1e-6) for time in times]


def eighths(start: float, end: float) -> list[float]:
    """The sampling times from `start` on and before `end`."""
    return [start + k / 8 for k in range(round((end - start) * 8))]


def glued(folder: Path, *begins: int) -> Path:
    """Recordings of 100 frames in one FLV file; the clock of each begins at so many frames."""
    parts = [
        numbered_video(
            folder / f"{n}.flv", 100, pts=[begin + k for k in range(100)], options={**GOPS, "bf": "0"}
        ).read_bytes()
        for n, begin in enumerate(begins)
    ]
    path = folder / "glued.flv"
    path.write_bytes(parts[0] + b"".join(part[FLV_HEADER:] for part in parts[1:]))
    return path


def found(result: CutResult) -> list[tuple[float, list[int]]]:
    return [(clip.start, numbers(clip.data)) for clip in result.clips]


@pytest.mark.parametrize("begins", [(0, 50), (0, 0), (250, 0)])
def test_two_recordings_in_one_file_are_parted_and_nothing_is_lost(tmp_path: Path, begins: tuple[int, int]) -> None:
    first = begins[0] / 25
    result = cut_clips(glued(tmp_path, *begins), config=OPEN)
    one = shown(eighths(0, 4))
    assert found(result) == [(first, one), (first + 4, one)]
    (parted,) = result.rejected
    assert (parted.reason, parted.start, parted.end) == ("clock_restarts", first + 4, first + 4)
    assert parted.measured == pytest.approx({"from": first + 3.96, "to": begins[1] / 25})


def test_a_window_of_a_glued_file_has_the_frames_of_those_times_of_the_whole(tmp_path: Path) -> None:
    path = glued(tmp_path, 0, 50, 0)
    assert found(cut_clips(path, start=1.0, end=3.5, config=OPEN)) == [(1.0, shown(eighths(1, 3.5)))]
    assert found(cut_clips(path, start=2.0, end=6.0, config=OPEN)) == [
        (2.0, shown(eighths(2, 4))),
        (4.0, shown(eighths(0, 2))),
    ]
    assert found(cut_clips(path, start=9.0, end=11.5, config=OPEN)) == [(9.0, shown(eighths(1, 3.5)))]


def restamped(source: Path, target: Path, ticks: list[int]) -> Path:
    """The same packets with other times, in the source's time base; no B-frames."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet, tick in zip(given.demux(video=0), ticks, strict=False):
            packet.pts = packet.dts = tick
            packet.stream = stream
            made.mux(packet)
    return target


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds with a keyframe every ten, as x264 makes them, at ticks of a millisecond."""
    path = tmp_path_factory.mktemp("steady") / "v.mkv"
    return numbered_video(path, 300, options={"g": "250", "bf": "0"})


def test_a_repeated_time_costs_its_frame_alone(steady: Path, tmp_path: Path) -> None:
    ticks = [40 * n for n in range(300)]
    ticks[100] = ticks[99]  # a frame that the sampling times take: 100 / 25 = 32 / 8
    path = restamped(steady, tmp_path / "v.mkv", ticks)
    assert ffprobe_times(path).count(3.96) == 2
    result = cut_clips(path, config=OPEN)
    assert not result.rejected
    expected = shown(eighths(0, 12))
    expected[32] = 99  # the frame before it stays until the next
    assert [number for _, some in found(result) for number in some] == expected


def test_a_clock_that_stands_still_parts_the_frames_around_it_and_counts_as_lost(steady: Path, tmp_path: Path) -> None:
    """For 75 of 300 frames, which is 3 of 12 seconds: 9 s by the clock, of which a third was lost."""
    ticks = [40 * min(n, 100) for n in range(176)] + [40 * (n - 75) for n in range(176, 300)]
    path = restamped(steady, tmp_path / "v.mkv", ticks)
    with pytest.raises(UndecodableVideo, match=r"3\.00 of 8\.96 s lost .*75 frames have no time of their own"):
        cut_clips(path, config=OPEN)
    result = cut_clips(path, config=type(OPEN)(**{**vars(OPEN), "max_damage": 0.5}))
    assert [(item.reason, item.start) for item in result.rejected] == [("damaged", pytest.approx(4.04))]
    before, after = found(result)
    assert before[1] == shown(eighths(0, 4.125))[: len(before[1])]
    assert min(after[1]) >= 176


def test_a_clock_that_stands_still_until_the_end_counts_as_lost_as_well(steady: Path, tmp_path: Path) -> None:
    """For 75 of 300 frames, which is 3 of 12 seconds; a window before them does not notice."""
    path = restamped(steady, tmp_path / "v.mkv", [40 * min(n, 224) for n in range(300)])
    with pytest.raises(UndecodableVideo, match=r"3\.00 of 8\.96 s lost .*75 frames have no time of their own"):
        cut_clips(path, config=OPEN)
    window = cut_clips(path, start=6.0, end=9.5, config=OPEN)
    assert [(item.reason, item.start) for item in window.rejected] == [("damaged", pytest.approx(9.0))]
    assert not cut_clips(path, start=6.0, end=8.5, config=OPEN).rejected
    result = cut_clips(path, config=type(OPEN)(**{**vars(OPEN), "max_damage": 0.5}))
    assert [(item.reason, item.start) for item in result.rejected] == [("damaged", pytest.approx(9.0))]
    assert [number for _, some in found(result) for number in some] == shown(eighths(0, 9))


@pytest.mark.parametrize(
    ("codec", "options"),
    [("mpeg2video", {"g": "12", "bf": "2", "qmin": "2", "qmax": "3"}), ("libx264", {"g": "25", "bf": "3"})],
)
@pytest.mark.parametrize("name", ["v.ts", "v.mpg", "v.mp4", "v.mkv"])
def test_a_window_anywhere_has_its_frames_by_the_quick_way(
    name: str, codec: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "v.mpg" and codec == "libx264":
        pytest.skip("a program stream of the first kind has no H.264")
    path = numbered_video(
        tmp_path / name, 250, codec=codec, options={"preset": "fast"} | options, width=160, height=128
    )
    first = ffprobe_times(path)[0]
    monkeypatch.setattr(cutter, "SequentialSamples", lambda *_, **__: pytest.fail("all frames were decoded"))
    config = type(OPEN)(**{**vars(OPEN), "min_short_side": 64, "short_side": 128})
    for start in (1.0, 2.52, 4.0, 7.0):
        (clip,) = cut_clips(path, start=first + start, end=first + start + 2, config=config).clips
        assert numbers(clip.data) == shown(eighths(start, start + 2)), start


def tracks(path: Path, *kinds: tuple[int, int, Disposition]) -> Path:
    """Video tracks of (width, frames, disposition); the height follows from the width."""
    with av.open(str(path), "w") as made:
        streams = []
        for width, _, disposition in kinds:
            stream = made.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, width * 4 // 5, "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream, (width, count, _) in zip(streams, kinds, strict=True):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(picture(number, width, width * 4 // 5), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                made.mux(stream.encode(frame))
            made.mux(stream.encode(None))
    return path


NONE, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize(
    ("kinds", "width"),
    [
        ([(160, 50, NONE), (320, 50, DEFAULT)], 320),
        ([(320, 50, NONE), (160, 50, DEFAULT)], 160),
        ([(320, 1, DEFAULT), (160, 50, NONE)], 160),
    ],
)
def test_the_track_is_the_one_that_players_show(
    tmp_path: Path, kinds: list[tuple[int, int, Disposition]], width: int
) -> None:
    with VideoSource(tracks(tmp_path / "v.mp4", *kinds)) as source:
        assert source.info["width"] == width


def test_of_tracks_that_are_all_flagged_the_largest_is_shown(tmp_path: Path) -> None:
    path = tracks(tmp_path / "v.mkv", (160, 50, DEFAULT), (320, 50, DEFAULT), (240, 50, DEFAULT))
    with VideoSource(path) as source:
        assert source.info["width"] == 320


def test_a_picture_that_is_held_to_the_end_and_a_longer_sound_are_nothing_missing(tmp_path: Path) -> None:
    """The header's end is 9 s in both: the last frame's duration there, and the sound's here."""
    held = numbered_video(tmp_path / "v.mov", 100)
    with av.open(str(held)) as given, av.open(str(tmp_path / "held.mp4"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        every = [packet for packet in given.demux(video=0) if packet.size]
        every[-1].duration = round(5 / every[-1].time_base)
        for packet in every:
            packet.stream = stream
            made.mux(packet)
    with VideoSource(tmp_path / "held.mp4") as source:
        assert source.declared_end == pytest.approx(8.96, abs=0.05)
    for path in (tmp_path / "held.mp4", CASES / "audio_longer.wmv"):
        result = cut_clips(path, config=OPEN)
        assert (len(result.clips), result.rejected) == (1, [])


def test_what_a_window_asks_for_beyond_the_end_is_recorded(tmp_path: Path) -> None:
    result = cut_clips(numbered_video(tmp_path / "v.mp4", 200), start=3.0, end=60.0, config=OPEN)
    assert found(result) == [(3.0, shown(eighths(3, 8)))]
    (beyond,) = result.rejected
    assert (beyond.reason, beyond.start, beyond.end) == ("outside_source", 8.0, 60.0)
    assert beyond.measured == {"missing": 52.0, "source_end": 8.0}


@pytest.mark.parametrize(("start", "end"), [(100.0, 101.0), (7.9, 90.0)])
def test_a_window_behind_the_end_is_recorded_as_it_was_asked_for(tmp_path: Path, start: float, end: float) -> None:
    """Nothing of it, or too little for a clip, is there. The source begins at 0, whichever keyframe is read first."""
    result = cut_clips(numbered_video(tmp_path / "v.mp4", 200, options={"g": "25"}), start=start, end=end, config=OPEN)
    assert not result.clips
    *short, beyond = result.rejected
    assert [item.reason for item in short] == ([] if start == 100.0 else ["too_short"])
    assert beyond.reason == "outside_source"
    if short:
        assert (beyond.start, beyond.end) == (8.0, end)
        assert beyond.measured["missing"] == 82.0
    else:
        assert (beyond.start, beyond.end) == (start, end)
        assert beyond.measured == pytest.approx({"source_start": 0.0, "source_end": 7.96})


def test_hdr_is_known_where_the_container_alone_tells_it() -> None:
    """`ffmpeg -color_trc smpte2084` wrote the container; the HEVC stream in it says nothing of its colours."""
    (refused,) = cut_clips(CASES / "hdr_container_only.mp4", config=OPEN).rejected
    assert (refused.reason, refused.measured) == ("hdr", {"transfer": "PQ"})
