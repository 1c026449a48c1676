"""Structure latent: what is there and how it slowly moves, a short low-resolution "video" of few channels.

Paper section 3.2.1. B batch, T frames, S patches of a frame, C width, Q queries (n_q), d_S channels, h_S x w_S reduced
grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import StructureConfig
from model.posterior import DiagonalGaussian
from model.precision import FixedTables, at_least_fp32
from model.qformer import QFormer
from model.resampling import resampling


class StructureEncoder(nn.Module):
    """[B, T, S, C] -> posterior over [B, d_S, n_q, h_S, w_S]: Q-Former over time, then strided convolutions."""

    def __init__(self, config: StructureConfig, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.qformer = QFormer(
            queries=config.queries,
            width=config.query_width,
            source_width=width,
            heads=config.query_heads,
            layers=config.query_layers,
            hidden=config.query_hidden,
            dropout=config.dropout,
        )
        channels = config.conv_width
        self.conv_in = nn.Conv2d(config.query_width, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for _ in range(config.downsamplings):
            self.down.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
            channels *= 2
        self.moments = nn.Conv2d(channels, 2 * config.channels, 3, padding=1)

    def forward(self, z_BTSC: Tensor) -> DiagonalGaussian:
        queries = self.qformer(z_BTSC)
        batch, count, _, width = queries.shape
        # a channels-last view of [B*Q, d, h, w]: no copy
        x = self.conv_in(queries.view(batch * count, self.grid, self.grid, width).permute(0, 3, 1, 2))
        for conv in self.down:
            x = F.relu(conv(x))
        moments = self.moments(x)
        video = moments.view(batch, count, *moments.shape[1:]).transpose(1, 2)
        return DiagonalGaussian.from_moments(video)


class TimeMix(FixedTables, nn.Linear):
    """A linear layer along dimension 1: [B, Q, S, C] -> [B, T, S, C], one matrix product that transposes nothing.

    For fewer frames its outputs are resampled along time, as `resize_weights` does for a model of that many frames.

    Args:
        queries, frames: Q and the largest T.
        shortest: the smallest T.
    """

    shorter: Tensor | None

    def __init__(self, queries: int, frames: int, shortest: int) -> None:
        super().__init__(queries, frames)
        self.shortest = shortest
        self.register_table("shorter", _resamplings(frames, shortest))

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """Args: x [B, Q, S, C]; frames T. Returns [B, T, S, C]."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if frames < self.out_features:
            assert self.shorter is not None
            # The table is in fp32 where an engine has cast the weights to 16 bits and left the buffers.
            shorten = at_least_fp32(self.shorter[frames - self.shortest, :frames])
            weight, bias = ((shorten @ at_least_fp32(part)).to(x.dtype) for part in (weight, bias))
        mixed = torch.matmul(weight, x.flatten(2)) + bias[:, None]
        return mixed.view(x.shape[0], -1, *x.shape[2:])


def _resamplings(frames: int, shortest: int) -> Tensor | None:
    """For n = 0, 1, ... what resamples `frames` frames to `shortest` + n, in the first rows of matrix n; or nothing.

    Made beforehand, so that no training step makes one on the host.
    """
    if shortest == frames:
        return None
    table = torch.zeros(frames - shortest, frames, frames, dtype=torch.float64, device="cpu")
    for count in range(shortest, frames):
        table[count - shortest, :count] = resampling(frames, count)
    return table


class StructureDecoder(nn.Module):
    """[B, d_S, n_q, h_S, w_S] -> [B, T, S, C]: convolutions that up-sample, crop, queries mixed into frames."""

    def __init__(self, config: StructureConfig, width: int, grid: int, frames: int, shortest: int) -> None:
        super().__init__()
        self.grid = grid
        channels = config.conv_width * 2**config.downsamplings
        self.conv_in = nn.Conv2d(config.channels, channels, 3, padding=1)
        self.up = nn.ModuleList()
        for _ in range(config.downsamplings):
            self.up.append(nn.Conv2d(channels, channels // 2, 3, padding=1))
            channels //= 2
        self.conv_out = nn.Conv2d(channels, config.query_width, 3, padding=1)
        self.widen = nn.Linear(config.query_width, width)
        self.mix = TimeMix(config.queries, frames, shortest)

    def forward(self, latent: Tensor, frames: int) -> Tensor:
        """Args: latent [B, d_S, n_q, h_S, w_S]; frames T. Returns [B, T, S, C]."""
        batch, _, count, height, width = latent.shape
        x = F.relu(self.conv_in(latent.transpose(1, 2).reshape(batch * count, -1, height, width)))
        for conv in self.up:
            x = F.interpolate(F.relu(conv(x)), scale_factor=2, mode="nearest")
        x = self.conv_out(x)
        border = (x.shape[-1] - self.grid) // 2  # an odd grid comes back larger than it was
        x = x[:, :, border : border + self.grid, border : border + self.grid]
        tokens = F.relu(self.widen(x.permute(0, 2, 3, 1).reshape(batch, count, self.grid**2, -1)))
        return F.relu(self.mix(tokens, frames))
