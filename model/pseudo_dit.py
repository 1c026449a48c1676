"""The paper's pseudo-DiT: the plain transformer on which it compares what latents of different shapes cost (Figure 5).

It has no time, no condition and nothing to learn from: only its operations and its memory are of interest. The paper
names width 512, 8 heads, MLPs of 2048, patches of 2, six layers and 12,610,560 parameters. Six such layers have
18,915,328 parameters with the last norm; 12,610,560 are those of four layers with the last norm. So four are built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.dit_config import PatchGrid
from model.patches3d import from_patches, positions3d, to_patches

WIDTH, HEADS, HIDDEN, LAYERS = 512, 8, 2048, 4
PATCH = (2, 2, 2)
"""The paper's patch; where it does not divide a latent (7 x 7 places, a video of one frame) `PatchGrid` refuses it."""


class PseudoDiT(nn.Module):
    """Latent videos in patches through one transformer, and back to their shapes.

    Args:
        grids: of the latents that make one clip; their tokens are put end to end.
        layers: of the transformer.
    """

    def __init__(self, grids: Sequence[PatchGrid], layers: int = LAYERS) -> None:
        super().__init__()
        self.grids = list(grids)
        self.inputs = nn.ModuleList(nn.Linear(grid.values, WIDTH) for grid in grids)
        self.outputs = nn.ModuleList(nn.Linear(WIDTH, grid.values) for grid in grids)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True),
            layers,
            norm=nn.LayerNorm(WIDTH),
            enable_nested_tensor=False,
        )

    def forward(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """[B, C, T, H, W] of each grid -> the same shapes."""
        tokens = [
            layer(to_patches(video, grid)) + positions3d(grid, WIDTH).to(video)
            for video, grid, layer in zip(latents, self.grids, self.inputs, strict=True)
        ]
        mixed = self.encoder(torch.cat(tokens, dim=1)).split([grid.tokens for grid in self.grids], dim=1)
        return [
            from_patches(layer(part), grid) for part, grid, layer in zip(mixed, self.grids, self.outputs, strict=True)
        ]
