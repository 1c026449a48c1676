"""Latents normalised channel by channel, by the mean and standard deviation of the latents that a DiT learns from.

B batch; structure [B, d_S, n_q, h, w]; dynamics [B, d_D, f, w + h], of which the first half varies along the width and
the second along the height. The two halves come from different posteriors, so each has statistics of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.dit_config import LatentSpace
from model.network import Latents
from model.precision import ExactBuffers, at_least_fp32

KINDS = ("structure", "dynamics_w", "dynamics_h")


class Channels(Protocol):
    """Mean and standard deviation of each channel of one kind of latent, [C]; a dataset of latents has them."""

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the values of each channel."""
        ...

    @property
    def deviation(self) -> tuple[float, ...]:
        """0 for a channel that is the same everywhere, which an autoencoder leaves where it uses fewer channels."""
        ...


@dataclass(frozen=True)
class ChannelStatistics:
    """`Channels` that are written down."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


Statistics = Mapping[str, Channels]
"""Kind of latent, one of `KINDS` -> its statistics."""


def check_statistics(statistics: Statistics, space: LatentSpace) -> None:
    """Refuse statistics that latents cannot be normalised by.

    Raises:
        ValueError: a kind is missing, has another number of channels, or numbers that no data can have.
    """
    channels = {"structure": space.structure_shape[0], "dynamics_w": space.dynamics_shape[0]}
    channels["dynamics_h"] = channels["dynamics_w"]
    for kind, count in channels.items():
        if kind not in statistics:
            raise ValueError(f"the latents have no statistics of {kind!r}; encode them again")
        found = statistics[kind]
        if (len(found.mean), len(found.deviation)) != (count, count):
            raise ValueError(
                f"the statistics of {kind!r} are of {len(found.mean)} channels, and the latents have {count}; encode "
                "them again"
            )
        for channel, (mean, deviation) in enumerate(zip(found.mean, found.deviation, strict=True)):
            if not (math.isfinite(mean) and math.isfinite(deviation) and deviation >= 0):
                raise ValueError(
                    f"channel {channel} of {kind!r} has mean {mean} and deviation {deviation}, which no finite latents "
                    "have; encode them again"
                )


class Normaliser(ExactBuffers):
    """Latents to mean 0 and deviation 1 in each channel, and back; its buffers stay fp32 where a network is 16-bit.

    A channel of deviation 0 has one value everywhere. It is divided by 1, so it becomes 0, and the way back gives that
    value again.

    Args:
        space: the latents'.
        statistics: None = mean 0 and deviation 1, for weights that are loaded afterwards.
    """

    def __init__(self, space: LatentSpace, statistics: Statistics | None) -> None:
        super().__init__()
        if statistics is None:
            d_s, d_d = space.structure_shape[0], space.dynamics_shape[0]
            sizes = zip(KINDS, (d_s, d_d, d_d), strict=True)
            statistics = {kind: ChannelStatistics((0.0,) * count, (1.0,) * count) for kind, count in sizes}
        check_statistics(statistics, space)
        for kind in KINDS:
            self.register_buffer(f"{kind}_mean", torch.tensor(statistics[kind].mean))
            divisors = [deviation or 1.0 for deviation in statistics[kind].deviation]
            self.register_buffer(f"{kind}_deviation", torch.tensor(divisors))

    def normalise(self, latents: Latents) -> Latents:
        """(latents - mean) / deviation, fp32 at least."""
        structure, dynamics = map(at_least_fp32, latents)
        half = dynamics.shape[-1] // 2
        return Latents(
            (structure - self._of("structure", "mean")) / self._of("structure", "deviation"),
            (dynamics - self._of_dynamics("mean", half)) / self._of_dynamics("deviation", half),
        )

    def denormalise(self, latents: Latents) -> Latents:
        """latents x deviation + mean, fp32 at least."""
        structure, dynamics = map(at_least_fp32, latents)
        half = dynamics.shape[-1] // 2
        return Latents(
            structure * self._of("structure", "deviation") + self._of("structure", "mean"),
            dynamics * self._of_dynamics("deviation", half) + self._of_dynamics("mean", half),
        )

    def _of(self, kind: str, what: str) -> Tensor:
        """[C, 1, 1, 1]."""
        return self.get_buffer(f"{kind}_{what}").reshape(-1, 1, 1, 1)

    def _of_dynamics(self, what: str, half: int) -> Tensor:
        """[d_D, 1, w + h]."""
        parts = [self.get_buffer(f"{kind}_{what}")[:, None].expand(-1, half) for kind in KINDS[1:]]
        return torch.cat(parts, dim=1)[:, None]
