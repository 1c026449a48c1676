"""From a frame of a video to the square that a model sees: the short side scaled to the square's, and the centre cut.

Scaling is bilinear and antialiased, as in the published evaluation script: first along the rows, then along the
columns. Between the two, only the columns of the square are kept, and large pictures are taken in bands of rows that
stay in the processor's cache. Neither changes a bit of the result. A frame has H x W pixels, the square S x S.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

_BAND = 2**20
"""Numbers of a picture that are taken together; in fp32 they have 4 MB."""


def square_of(size: int) -> Callable[[NDArray[np.uint8]], Tensor]:
    """A function from a frame, uint8 [H, W, 3], to the centre square [3, S, S] in [0, 1] that a model sees.

    Args:
        size: S in pixels.
    """

    def take(pixels: NDArray[np.uint8]) -> Tensor:
        height, width = pixels.shape[:2]
        high, wide = _scaled(height, width, size)
        top, left = round((high - size) / 2), round((wide - size) / 2)
        rows = max(1, _BAND // (3 * width))
        bands = (_unit(pixels[first : first + rows]) for first in range(0, height, rows))
        narrow = [_resized(band, band.shape[1], wide)[:, :, left : left + size] for band in bands]
        return _resized(torch.cat(narrow, dim=1), high, size)[:, top : top + size]

    return take


def _scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the whole picture when its short side is `size`."""
    if height <= width:
        return size, max(size, int(size * width / height))
    return max(size, int(size * height / width)), size


def _unit(pixels: NDArray[np.uint8]) -> Tensor:
    """Rows of a picture as [3, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    """[3, H, W] -> [3, height, width]."""
    if picture.shape[1:] == (height, width):
        return picture
    return interpolate(picture[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
