"""Frames against ffmpeg's own output: rotation, pixel aspect, raw files."""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluation.frames import open_frames, yuv_geometry

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is the witness")


def ffmpeg(*arguments: str) -> bytes:
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True, stdout=subprocess.PIPE).stdout


def decoded_by_ffmpeg(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    raw = ffmpeg(
        "-i", str(path), "-vf", f"scale={width}:{height}:flags=bilinear", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def with_display_matrix(mp4: bytes, degrees: int) -> bytes:
    """The file with the 3x3 matrix of its track header (ISO 14496-12, section 8.3.2) set to a clockwise turn."""
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    at = mp4.index(b"tkhd") + 44
    return mp4[:at] + matrix + mp4[at + 36 :]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=30:d=0.4", "-pix_fmt", "yuv420p", str(path))
    return path


@needs_ffmpeg
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright(plain: Path, tmp_path: Path, degrees: int) -> None:
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(with_display_matrix(plain.read_bytes(), degrees))
    with open_frames(turned) as reader:
        frames = list(reader)
        assert reader.fps == 30
    height, width = frames[0].shape[:2]
    assert (width, height) == ((96, 64) if degrees % 180 == 0 else (64, 96))
    expected = decoded_by_ffmpeg(turned, width, height)
    assert len(frames) == len(expected) == 12
    assert np.abs(np.stack(frames).astype(int) - expected).mean() < 2


@needs_ffmpeg
def test_pixels_become_square(plain: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.mp4"
    ffmpeg("-i", str(plain), "-vf", "setsar=4/3", str(wide))
    with open_frames(wide) as reader:
        first = next(iter(reader))
    assert first.shape == (64, 128, 3)
    assert np.abs(first.astype(int) - decoded_by_ffmpeg(wide, 128, 64)[0]).mean() < 8


@needs_ffmpeg
def test_raw_yuv_takes_its_geometry_from_its_name(plain: Path, tmp_path: Path) -> None:
    raw = tmp_path / "videoSRC01_96x64_30.yuv"
    ffmpeg("-i", str(plain), "-f", "rawvideo", "-pix_fmt", "yuv420p", str(raw))
    with open_frames(raw) as reader, open_frames(plain) as same:
        assert reader.fps == 30
        np.testing.assert_array_equal(np.stack(list(reader)), np.stack(list(same)))


def test_yuv_names() -> None:
    assert yuv_geometry(Path("videoSRC05_1920x1080_25.yuv")) == (1920, 1080, 25)
    assert yuv_geometry(Path("a_b_640x360_29.97fps.yuv")) == (640, 360, Fraction("29.97"))
    with pytest.raises(ValueError, match=r"clip\.yuv: a raw \.yuv must be named"):
        yuv_geometry(Path("clip.yuv"))


def test_what_is_not_a_video_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video" * 100)
    with pytest.raises(ValueError, match=r"bad\.mp4 cannot be opened"), open_frames(bad):
        pass
    with pytest.raises(ValueError, match=r"absent\.mp4 cannot be opened"), open_frames(tmp_path / "absent.mp4"):
        pass
