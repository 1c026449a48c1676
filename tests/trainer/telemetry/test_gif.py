"""Moving pictures read back with Pillow."""

import io

import numpy as np
import torch
from PIL import Image

from trainer.evaluation.pictures import Frames, side_by_side
from trainer.telemetry.gif import GAP, encode_gif, enlarged, gif_of


def clips(columns: int, size: int) -> torch.Tensor:
    """Column c, frame t is one flat colour: red 40 c, green 30 t."""
    pictures = torch.zeros(columns, 5, size, size, 3, dtype=torch.uint8)
    for c in range(columns):
        for t in range(5):
            pictures[c, t, ..., 0], pictures[c, t, ..., 1] = 40 * c, 30 * t
    return pictures


def shown(columns: torch.Tensor) -> Frames:
    return side_by_side(enlarged(columns), GAP)


def test_columns_stand_side_by_side_and_small_ones_are_enlarged() -> None:
    frames = shown(clips(4, 48))
    assert frames.shape == (5, 144, 4 * 144 + 3 * 2, 3)
    for c in range(4):
        block = frames[2, :, c * 146 : c * 146 + 144]
        assert (block == (40 * c, 60, 0)).all()
    assert (frames[:, :, 144:146] == 255).all()
    assert shown(clips(2, 224)).shape == (5, 224, 450, 3)


def test_gif_plays_every_frame_at_its_rate() -> None:
    with Image.open(io.BytesIO(encode_gif(shown(clips(2, 128)), fps=8))) as gif:
        assert gif.n_frames == 5
        for t in range(5):
            gif.seek(t)
            assert gif.info["duration"] in (120, 130)  # GIF counts hundredths of a second
            middle = np.asarray(gif.convert("RGB"))[64, 200].astype(int)
            assert np.abs(middle - (40, 30 * t, 0)).max() <= 8
        assert gif.info["loop"] == 0


def test_its_size_is_that_of_the_clips_with_gaps() -> None:
    encoded, height, width = gif_of(clips(4, 128))
    with Image.open(io.BytesIO(encoded)) as gif:
        assert gif.size == (width, height) == (4 * 128 + 6, 128)
