"""A latent video cut into 3-D patches and back, and the fixed positions of the patches.

B batch, C channels, T H W sizes, (t, h, w) a patch, N = (T/t) (H/h) (W/w) patches in reading order. A patch vector runs
over (moment, row, column, channel).
"""

import torch
from torch import Tensor

from model.dit_config import PatchGrid
from model.patches import sincos_positions


def to_patches(video: Tensor, grid: PatchGrid) -> Tensor:
    """[B, C, T, H, W] -> [B, N, t*h*w*C]."""
    (a, b, c), (t, h, w) = grid.cells, grid.patch
    cut = video.reshape(len(video), -1, a, t, b, h, c, w)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(video), grid.tokens, grid.values)


def from_patches(patches: Tensor, grid: PatchGrid) -> Tensor:
    """Undo `to_patches`: [B, N, t*h*w*C] -> [B, C, T, H, W]."""
    cut = patches.reshape(len(patches), *grid.cells, *grid.patch, grid.shape[0])
    return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(patches), *grid.shape)


def positions3d(grid: PatchGrid, width: int) -> Tensor:
    """Sines and cosines of a patch's place along the three axes, [N, width] in float64 on the CPU.

    Each axis has an equal, even share of the width; what is left over, at most 5 numbers, is 0.
    """
    share = width // 6 * 2
    table = torch.zeros(*grid.cells, width, dtype=torch.float64, device="cpu")
    for axis, count in enumerate(grid.cells):
        line = sincos_positions(count, share)
        table[..., axis * share : (axis + 1) * share] = line.reshape(
            [count if k == axis else 1 for k in range(3)] + [-1]
        )
    return table.reshape(grid.tokens, width)
