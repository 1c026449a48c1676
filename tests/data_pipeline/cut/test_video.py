"""Opening a video: every container and codec, and what is no video, or none of use, is said to be."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.video import UndecodableVideo, VideoSource
from tests.data_pipeline.cut.videos import (
    OPEN,
    audio,
    ffprobe_times,
    numbered_video,
    numbers,
    real_video,
)


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


def test_a_slow_window_of_just_the_samples_of_a_clip_is_rejected_for_its_rate(tmp_path: Path) -> None:
    """One second has the eight samples of the shortest clip, at four frames: each of them twice."""
    path = numbered_video(tmp_path / "v.mp4", 12, fps=4)
    (rejection,) = cut_clips(path, start=1.0, end=2.0, config=replace(OPEN, min_seconds=1.0, fps=8)).rejected
    assert (rejection.number, rejection.reason) == (None, "fps_too_low")
    assert rejection.measured == {"fps": pytest.approx(4.0), "longest_gap": pytest.approx(0.25)}


def cut_off(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
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


@pytest.mark.parametrize("name", ["talk: part 1.mp4", "http:v.mp4", "data:v.mp4", "concat:v.mp4"])
def test_a_name_with_a_colon_is_the_name_of_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To FFmpeg the beginning of such a name is a protocol: without a folder before it, it would not be opened."""
    monkeypatch.chdir(tmp_path)
    with VideoSource(numbered_video(Path(name).absolute(), 4).name) as source:
        assert source.info["codec"] == "h264"


def test_one_frame_is_too_short(tmp_path: Path) -> None:
    (rejection,) = cut_clips(numbered_video(tmp_path / "v.mp4", 1), config=OPEN).rejected
    assert rejection.reason == "too_short"


def test_an_endless_source_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 100)
    config = ClipConfig(max_source_seconds=3.0)
    (rejection,) = cut_clips(path, config=config).rejected
    assert (rejection.number, rejection.reason) == (None, "too_long")
    assert cut_clips(path, start=0.5, end=3.0, config=config).clips  # a window of it may be short enough
