"""The same video gives the same clips, whatever lies in the memory of the process, and on every x86 processor."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av.logging
import pytest

from data_pipeline.cut import encode
from data_pipeline.cut.config import ClipConfig, Codec, Crop
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.result import CutResult
from tests.data_pipeline.cut.videos import real_video
from tests.tools.heap import leave_in_memory

# Rows of 5 to 14 macroblocks: x264's AVX-512 code takes eight of a row at once, so all these rows leave it a rest.
SETTINGS: list[dict[str, Any]] = [
    {"short_side": 68},
    {"short_side": 90, "bframes": 2},
    {"short_side": 68, "crop": Crop.none},
    {"short_side": 70, "codec": Codec.mjpeg},
    {"short_side": 224},
]
VIDEOS = ["bikes.mp4", "carphone_pristine.mp4"]
FEWER = {"sse2": {"AVX2", "AVX512"}, "avx2": {"AVX512"}}  # x264's `asm`, and which of its words the log must then lack


def cut(video: Path, settings: dict[str, Any]) -> CutResult:
    config = ClipConfig(min_short_side=64, min_seconds=1.0, max_seconds=2.5, crf=8, **settings)
    result = cut_clips(video, end=2.0, config=config)
    assert result.clips, result.rejected
    return result


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_clips_do_not_depend_on_what_lay_in_memory(settings: dict[str, Any], name: str) -> None:
    video = real_video(name)
    leave_in_memory(0, 0)
    first = cut(video, settings)
    # 255 in all bytes is a motion vector of -1 and a cost that says "in use"; x264's AVX-512 code believed both.
    for value, shift in ((255, 0), (255, 40), (0, 136), (255, 1000), (170, 0), (127, 500)):
        leave_in_memory(value, shift)
        assert cut(video, settings) == first, f"after {value} in memory, with blocks larger by {shift} bytes"


@contextmanager
def x264_log() -> Iterator[list[tuple[int, str, str]]]:
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            yield lines
    finally:
        av.logging.set_level(level)


def capabilities(lines: list[tuple[int, str, str]]) -> set[str]:
    """The instruction sets that x264 says it uses, over all its encoders."""
    told = [text.partition("cpu capabilities:")[2].split() for _, _, text in lines if "cpu capabilities:" in text]
    return {word for words in told for word in words}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names the instruction sets of x86-64")
@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("settings", [{"short_side": 68}, {"short_side": 256}], ids=repr)
def test_clips_do_not_depend_on_the_instruction_sets_that_x264_finds(
    settings: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, options = real_video(name), encode.h264_options
    with x264_log() as lines:
        first = cut(video, settings)
    present = capabilities(lines)
    assert present, "x264 did not say what it uses"
    for choice, excluded in FEWER.items():

        def confined(config: ClipConfig, choice: str = choice) -> dict[str, str]:
            chosen = options(config)
            return chosen | {"x264-params": f"{chosen['x264-params']}:asm={choice}"}

        if not excluded & present:
            continue
        monkeypatch.setattr(encode, "h264_options", confined)
        with x264_log() as lines:
            clips = cut(video, settings)
        assert not excluded & capabilities(lines), f"x264 did not obey asm={choice}"
        assert clips == first, f"asm={choice} gives other bytes than {sorted(present)}"
