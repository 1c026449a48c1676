"""The square that a model sees: what Pillow makes of a frame, and to the bit what one call of torch makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.evaluation import squares
from trainer.evaluation.squares import square_of


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_one_call(pixels: NDArray[np.uint8], size: int, scaled: tuple[int, int]) -> Tensor:
    """The whole frame, scaled by one call, and the centre of the result."""
    whole = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    wide = interpolate(whole[None], scaled, mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return wide[:, top : top + size, left : left + size]


def test_a_square_agrees_with_pillow() -> None:
    pillow = np.asarray(Image.fromarray(noise(90, 120)).resize((60, 45), Image.Resampling.BILINEAR))[:, 8:53]
    ours = square_of(45)(noise(90, 120))
    assert ours.shape == (3, 45, 45)
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy() * 255, pillow, atol=1.01)


@pytest.mark.parametrize("band", [1, 400, 2**20])
@pytest.mark.parametrize(
    ("frame", "size", "scaled"),
    [
        ((72, 128), 32, (32, 56)),
        ((128, 72), 32, (56, 32)),
        ((61, 47), 40, (51, 40)),
        ((30, 44), 50, (50, 73)),
        ((32, 50), 32, (32, 50)),
        ((40, 40), 17, (17, 17)),
        ((270, 480), 112, (112, 199)),
    ],
)
def test_a_square_is_to_the_bit_the_centre_of_the_whole_frame_scaled_at_once(
    frame: tuple[int, int], size: int, scaled: tuple[int, int], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squares, "_BAND", band)
    assert torch.equal(square_of(size)(noise(*frame)), in_one_call(noise(*frame), size, scaled))


def test_a_frame_of_the_right_size_keeps_its_pixels() -> None:
    pixels = noise(16, 16)
    assert torch.equal(square_of(16)(pixels) * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())
