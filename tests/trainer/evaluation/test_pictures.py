"""Moving pictures read back with Pillow and PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from trainer.evaluation.pictures import VideoWriter, animated_png, side_by_side


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


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
