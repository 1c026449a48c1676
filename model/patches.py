"""Frames cut into square patches and back, and the fixed positions of those patches.

B batch, T frames, S = h*w patches of a frame in reading order, p patch side. One order everywhere: a patch vector runs
over (row, column, colour), tokens over (frame, patch row, patch column).
"""

import math

import torch
from torch import Tensor

from model.config import COLOURS


def patchify(video: Tensor, patch: int) -> Tensor:
    """Cut a video into patch vectors.

    Args:
        video: [B, 3, T, H, W]; H and W multiples of `patch`.
        patch: side of a patch in pixels.
    Returns:
        [B, T, h*w, p*p*3].
    """
    batch, colours, frames, height, width = video.shape
    h, w = height // patch, width // patch
    cut = video.reshape(batch, colours, frames, h, patch, w, patch)
    return cut.permute(0, 2, 3, 5, 4, 6, 1).reshape(batch, frames, h * w, patch * patch * colours)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Undo `patchify` for square frames: [B, T, g*g, p*p*3] -> [B, 3, T, g*p, g*p]."""
    batch, frames, count, _ = patches.shape
    grid = math.isqrt(count)
    cut = patches.reshape(batch, frames, grid, grid, patch, patch, COLOURS)
    return cut.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, COLOURS, frames, grid * patch, grid * patch)


def sincos_positions(count: int, width: int, span: int | None = None) -> Tensor:
    """Sine half and cosine half over positions, [count, width] in float64 on the CPU (Vaswani et al. 2017, 3.5).

    Args:
        count: how many positions; they are 0 .. count-1 without `span`.
        width: numbers a position, even.
        span: lay the positions over a line of `span` unit cells instead: the centres of `count` equal parts of it,
            counted from the centre of its first cell. With span = count they are 0 .. count-1 again.
    """
    half = width // 2
    # Whatever the default device: on `meta`, `arange` would first import torch's compiler, which takes two seconds.
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    place = torch.arange(count, dtype=torch.float64, device="cpu")
    if span is not None and span != count:
        place = (place + 0.5) * (span / count) - 0.5
    angle = place[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def grid_positions(grid: int, width: int, span: int | None = None) -> Tensor:
    """Positions of a grid x grid frame, [grid*grid, width] in float64: columns in the first half, rows the second.

    They are on the CPU. `span` is the side of the grid whose coordinates they are given in (see `sincos_positions`).
    """
    line = sincos_positions(grid, width // 2, span)
    columns = line[None, :, :].expand(grid, grid, -1)
    rows = line[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(grid * grid, width)
