"""Moving pictures read back with Pillow and PyAV."""

from __future__ import annotations

import errno
import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.store.base import StoreError
from tests.data_pipeline.dataset.tiny_dataset import real_video
from tests.tools.file_limit import file_limit
from trainer.evaluation import pictures
from trainer.evaluation.pictures import VideoWriter, animated_png, side_by_side


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def real_frames(count: int, side: int) -> list[np.ndarray]:
    """The first frames of a real video, as squares."""
    with av.open(str(real_video("bikes.mp4"))) as opened:
        found = [frame for frame, _ in zip(opened.decode(video=0), range(count), strict=False)]
    return [frame.to_ndarray(format="rgb24", width=side, height=side) for frame in found]


def write_noise(path: Path) -> None:
    """A video of 60 kB."""
    with VideoWriter(path, Fraction(25)) as writer:
        for frame in noise(30, 64, 64):
            writer.write(frame)


def test_a_name_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_noise(Path("http:1.mp4"))
    with av.open(str(tmp_path / "http:1.mp4")) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 30


def test_an_animated_png_is_lossless_and_loops_at_its_rate() -> None:
    frames = noise(8, 6, 10)
    with Image.open(io.BytesIO(animated_png(frames, fps=8, scale=2))) as picture:
        assert (picture.n_frames, picture.size, picture.info["loop"]) == (8, (20, 12), 0)
        for number, frame in enumerate(frames):
            picture.seek(number)
            assert picture.info["duration"] == 125
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[::2, 1::2], frame)


def test_side_by_side_keeps_clips_apart() -> None:
    a, b = noise(3, 4, 5, 1), noise(3, 4, 5, 2)
    both = side_by_side([a, b], gap=2)
    np.testing.assert_array_equal(both, np.concatenate([a, np.full((3, 4, 2, 3), 255), b], axis=2))
    with pytest.raises(ValueError, match="must have one shape"):
        side_by_side([a, b[:2]])


def test_a_video_keeps_colours_rate_and_odd_sizes(tmp_path: Path) -> None:
    colours = np.zeros((3, 33, 47, 3), dtype=np.uint8)
    colours[0], colours[1], colours[2] = (200, 30, 40), (30, 180, 60), (20, 60, 190)
    with VideoWriter(tmp_path / "v.mp4", Fraction(30000, 1001)) as writer:
        for frame in colours:
            writer.write(frame)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert shown[0].shape == (34, 48, 3)
    assert np.abs(np.stack(shown)[:, :33, :47].astype(int) - colours).max() <= 6


def test_a_video_that_failed_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")
    writer = VideoWriter(path, Fraction(25))
    writer.write(noise(1, 16, 16)[0])
    writer.__exit__(RuntimeError, RuntimeError("on purpose"), None)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("call", ["open", "mux", "close"])
def test_a_full_disk_is_told_with_its_remedy_and_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the first, in the middle, or when the last bytes are written."""
    opened = av.open

    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "named by ffmpeg"))

    def on_a_full_disk(*words: Any, **options: Any) -> Any:
        container = opened(*words, **options)
        return Mock(wraps=container, **{call: full})

    monkeypatch.setattr("trainer.evaluation.pictures.av.open", full if call == "open" else on_a_full_disk)
    with pytest.raises(StoreError, match="no space left; nothing partial was kept: free space") as told:
        write_noise(tmp_path / "v.mp4")
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / "v.mp4"))
    assert list(tmp_path.iterdir()) == []


def test_a_video_does_not_depend_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x264 without its code for special processors is the truth; with it, also a repetition has had other bytes."""
    frames, made = real_frames(8, 64), {}
    for name, params in (("as it is", None), ("plain code", "asm=0")):
        if params is not None:
            monkeypatch.setattr(pictures, "H264_OPTIONS", pictures.H264_OPTIONS | {"x264-params": params})
        with VideoWriter(tmp_path / "v.mp4", Fraction(8)) as writer:
            for frame in frames:
                writer.write(frame)
        made[name] = (tmp_path / "v.mp4").read_bytes()
    assert made["as it is"] == made["plain code"]


def test_a_video_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses to let the file grow, so that ffmpeg meets the error wherever it writes."""
    with file_limit(4096), pytest.raises(OSError, match="File too large"):
        write_noise(tmp_path / "v.mp4")
    assert list(tmp_path.iterdir()) == []
