"""The loss of some clips: squared error of each latent, weighted by the time, and the two latents' shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from model.dit_config import LatentSpace
from model.dit_parts import Condition
from model.network import Latents
from model.precision import at_least_fp32
from trainer.diffusion.process import Process

Network = Callable[[Tensor, Tensor, Tensor, Condition], Latents]
"""A DiT, or the engine that holds it."""


@dataclass(frozen=True)
class Share:
    """How the losses of the two latents are put together: structure x its loss + (1 - structure) x the other's."""

    structure: float

    @staticmethod
    def of(setting: float | None, space: LatentSpace) -> Share:
        """The share of `loss.structure_share`; None = by the latents' sizes, so that every number counts the same."""
        if setting is not None:
            return Share(setting)
        d, f, sides = space.dynamics_shape
        return Share(1 - d * f * sides / space.values)

    def together(self, structure: Tensor, dynamics: Tensor) -> Tensor:
        """The whole loss."""
        return self.structure * structure + (1 - self.structure) * dynamics


def clip_losses(
    network: Network, process: Process, clean: Latents, noise: Latents, times: Tensor, condition: Condition
) -> Latents:
    """For each clip the weighted mean squared error of its structure and of its dynamics, [B] each, with gradient.

    Args:
        clean: normalised latents, fp32 at least.
        noise: of the same shapes.
        times: float64 [B], on the host.
        condition: of the kind that the network was built for.
    """
    seen = [process.noisy(x0, eps, times) for x0, eps in zip(clean, noise, strict=True)]
    device = clean.structure.device
    predicted = network(seen[0], seen[1], process.told(times).to(device), condition)
    weights = process.weights(times).to(device=device, dtype=clean.structure.dtype)
    errors = [
        weights * (at_least_fp32(said) - process.target(x0, eps)).square().flatten(1).mean(1)
        for said, x0, eps in zip(predicted, clean, noise, strict=True)
    ]
    return Latents(*errors)
