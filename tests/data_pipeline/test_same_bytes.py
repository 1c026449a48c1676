"""The same video gives the same clips, and the same clip the same frames, whatever lies in memory.

Libraries that calculate several values at a time read past the end of their arrays. Usually zeros lie there, so a fault
shows in one of a hundred runs. Here the free memory of the process is filled with other values before each run.
"""

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.cut import encode
from data_pipeline.cut.cutter import ClipConfig, Codec, Crop, cut_clips
from data_pipeline.cut.encode import encode_pictures
from data_pipeline.read.clip_decoder import View, ViewDecoder, decode_window
from data_pipeline.report.stills import clip_strip
from tests.data_pipeline.cut.videos import picture, real_video

# The value of each byte of free memory. Two bytes of 255 are the number -1, and two of 254 are -258: short vectors.
FILLS = (0, 255, 254, 128, 85)
SMALL: dict[str, Any] = {"min_seconds": 1.0, "max_seconds": 2.0, "min_short_side": 64, "crf": 8, "gop": 8}
# 68, 90 and 144 are no multiples of the 64 and 128 pixels that vector code likes; 256 is the usual size.
SETTINGS = {
    "68 squares": ClipConfig(short_side=68, **SMALL),
    "whole pictures": ClipConfig(short_side=90, crop=Crop.none, bframes=2, **SMALL),
    "144 squares": ClipConfig(short_side=144, **SMALL),
    "256 squares": ClipConfig(short_side=256, **SMALL),
    "jpeg": ClipConfig(short_side=68, codec=Codec.mjpeg, **SMALL),
}
CASES = [(name, key) for key in SETTINGS for name in ("bikes.mp4", "carphone_pristine.mp4")]


def fill_free_memory(value: int, turn: int) -> list[NDArray[np.uint8]]:
    """Take blocks of many sizes, write `value` to each byte, and free them.

    Returns:
        Small blocks that stay taken, so that what is taken next lies elsewhere than in the last turn.
    """
    sizes = np.linspace(1_000, 2_000_000, 30).astype(int)
    filled = [np.full(size, value, np.uint8) for size in (*sizes, *[60_000] * 100)]
    shift = [np.empty(1 + (turn * 997 + k * 131) % 3_000, np.uint8) for k in range(20)]
    del filled
    return shift


def outcome(name: str, config: ClipConfig, turn: int, fill: int) -> tuple[str, str]:
    """Digests of all that is cut from a real video, and of all that is read from its first clip."""
    shift = [fill_free_memory(fill, turn)]
    result = cut_clips(real_video(name), end=1.6, config=config)
    clip = result.clips[0]
    shift.append(fill_free_memory(fill, turn + 1))
    read = hashlib.sha256(decode_window(clip.data, 0, clip.frames, fps=Fraction(config.fps)))
    side = min(clip.width, clip.height) // 4 * 2
    for size in (64, 50):
        out = np.full((3, 4, size, size), fill, np.uint8)
        view = View(start=1, stride=2, top=2, left=6, side=side, flip=size == 50)
        ViewDecoder(Fraction(config.fps)).decode(clip.data, view, out)
        read.update(out)
    read.update(clip_strip(clip.data, clip.frames, Fraction(config.fps)))
    return hashlib.sha256(repr(result).encode()).hexdigest(), read.hexdigest()


def print_outcomes() -> None:
    """One line for each case and fill: number of the case, digest of what is cut, digest of what is read."""
    for number, (name, key) in enumerate(CASES):
        for turn, fill in enumerate(FILLS):
            print(number, *outcome(name, SETTINGS[key], turn, fill))


@pytest.fixture(scope="module")
def outcomes() -> list[list[str]]:
    """The lines of `print_outcomes`, from a process that gives no freed memory back to the system."""
    memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}  # of glibc: mallopt(3)
    program = "from tests.data_pipeline.test_same_bytes import print_outcomes; print_outcomes()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | memory,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_clips_and_frames_do_not_depend_on_what_lies_in_memory(number: int, outcomes: list[list[str]]) -> None:
    cut, read = zip(*[(cut, read) for case, cut, read in outcomes if case == str(number)], strict=True)
    assert len(cut) == len(FILLS)
    assert set(cut) == {cut[0]}, f"the fills {FILLS} gave the clips {[digest[:6] for digest in cut]}"
    assert set(read) == {read[0]}, f"the fills {FILLS} gave the frames {[digest[:6] for digest in read]}"


@pytest.mark.parametrize("size", [68, 144, 256])
def test_bytes_are_those_of_the_c_code_of_x264(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [av.VideoFrame.from_ndarray(picture(n, size, size), format="rgb24") for n in range(0, 48, 3)]
    pictures = [frame.reformat(format="yuv420p", dst_color_range="MPEG") for frame in frames]
    config = ClipConfig(gop=8)
    usual = encode_pictures(pictures, config).data
    monkeypatch.setattr(encode, "X264_PARAMS", f"{encode.X264_PARAMS}:asm=0")  # no code for one kind of processor
    assert encode_pictures(pictures, config).data == usual
