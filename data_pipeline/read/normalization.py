"""Latents with mean 0 and deviation 1 in each channel, by the statistics in dataset.json, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.dataset.latent_records import STATISTICS_SPLIT, ChannelStatistics, LatentsDescription


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of each channel of `structure` and of `dynamics`, of which each part has its own.

    A channel whose deviation is 0 has one value in the whole training split. Its mean is subtracted and it is divided
    by 1, so it becomes 0 there and the way back gives that value again.
    """

    structure_mean: Tensor  # [d_S, 1, 1, 1]
    structure_scale: Tensor  # [d_S, 1, 1, 1]: the deviation, or 1 where that is 0
    dynamics_mean: Tensor  # [d_D, 1, w_D + h_D]
    dynamics_scale: Tensor  # [d_D, 1, w_D + h_D]

    @staticmethod
    def of(latents: LatentsDescription) -> Normalization:
        """The normalisation by the statistics of a dataset.

        Raises:
            ValueError: the dataset has no sample of the split that statistics are computed over.
        """
        found = latents.statistics
        if not all(statistics.values for statistics in found.values()):
            raise ValueError(
                f"the dataset has no sample of split {STATISTICS_SPLIT!r}, over which its statistics are computed; set "
                "data.normalize=false"
            )
        means, scales = [], []
        for name in ("dynamics_w", "dynamics_h"):
            mean, scale = _channels(found[name])
            side = latents.shapes[name][-1]
            means.append(mean[:, None, None].expand(-1, 1, side))
            scales.append(scale[:, None, None].expand(-1, 1, side))
        mean, scale = _channels(found["structure"])
        return Normalization(
            mean[:, None, None, None], scale[:, None, None, None], torch.cat(means, -1), torch.cat(scales, -1)
        )

    def apply(self, structure: Tensor, dynamics: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised latents. Any axes may stand before [d_S, n_q, h_S, w_S] and [d_D, f, w_D + h_D]."""
        s_mean, s_scale, d_mean, d_scale = self._on(structure.device)
        return (structure - s_mean) / s_scale, (dynamics - d_mean) / d_scale

    def invert(self, structure: Tensor, dynamics: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of which `apply` made these, to rounding."""
        s_mean, s_scale, d_mean, d_scale = self._on(structure.device)
        return structure * s_scale + s_mean, dynamics * d_scale + d_mean

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device) for tensor in vars(self).values())


def constant_channels(latents: LatentsDescription) -> dict[str, list[int]]:
    """Tensor -> its channels whose deviation is 0; tensors without such a channel are left out."""
    found = {
        name: [channel for channel, deviation in enumerate(statistics.deviation) if deviation == 0]
        for name, statistics in latents.statistics.items()
    }
    return {name: channels for name, channels in found.items() if channels}


def _channels(statistics: ChannelStatistics) -> tuple[Tensor, Tensor]:
    scale = [deviation or 1.0 for deviation in statistics.deviation]
    return torch.tensor(statistics.mean, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)
