"""Dynamics latent: what moves fast, averaged down to two vectors a frame.

Paper section 3.2.2. B batch, T frames, S = g*g patches of a frame, C width, d_D channels, h_D = w_D reduced grid side.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DynamicsConfig, reduced_grid
from model.posterior import DiagonalGaussian


class DynamicsPosterior(NamedTuple):
    """Posteriors over [B, d_D, T, w_D] (`w`: height averaged away) and [B, d_D, T, h_D] (`h`: width averaged away)."""

    w: DiagonalGaussian
    h: DiagonalGaussian


class DynamicsEncoder(nn.Module):
    """[B, T, S, C] -> the two posteriors: strided convolutions, two means, one shared head."""

    def __init__(self, config: DynamicsConfig, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(config.downsamplings))
        self.moments = nn.Conv2d(width, 2 * config.channels, 3, padding=1)

    def forward(self, z_BTSC: Tensor) -> DynamicsPosterior:
        batch, frames, _, width = z_BTSC.shape
        # a channels-last view of [B*T, C, g, g]: no copy
        x = z_BTSC.view(batch * frames, self.grid, self.grid, width).permute(0, 3, 1, 2)
        for conv in self.down:
            x = F.relu(conv(x))
        x = x.unflatten(0, (batch, frames)).transpose(1, 2)  # [B, C, T, h_D, w_D]
        return DynamicsPosterior(
            w=DiagonalGaussian.from_moments(self.moments(x.mean(dim=-2))),
            h=DiagonalGaussian.from_moments(self.moments(x.mean(dim=-1))),
        )


class DynamicsDecoder(nn.Module):
    """The two latents [B, d_D, T, w_D] and [B, d_D, T, h_D] -> [B, T, S, C].

    Both go through the same layers, and each is repeated along the axis it lost.
    """

    def __init__(self, config: DynamicsConfig, width: int, grid: int) -> None:
        super().__init__()
        self.widen = nn.Linear(config.channels, width)
        self.hidden = nn.Linear(width, width)
        reduced = reduced_grid(grid, config.downsamplings)
        self.stretch = nn.ModuleList()
        if config.downsamplings:
            self.stretch.extend([nn.Linear(reduced, grid), nn.Linear(grid, grid)])

    def forward(self, along_width: Tensor, along_height: Tensor) -> Tensor:
        columns = self._vectors(along_width)[:, :, None, :, :]  # [B, T, 1, g, C]
        rows = self._vectors(along_height)[:, :, :, None, :]  # [B, T, g, 1, C]
        return (columns + rows).flatten(2, 3)

    def _vectors(self, latent: Tensor) -> Tensor:
        """[B, d_D, T, reduced side] -> [B, T, g, C]."""
        x = F.relu(self.hidden(F.relu(self.widen(latent.permute(0, 2, 3, 1)))))
        if not self.stretch:
            return x
        x = x.transpose(-1, -2)
        for linear in self.stretch:
            x = F.relu(linear(x))
        return x.transpose(-1, -2)
