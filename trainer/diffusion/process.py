"""The two noise processes behind one face: when a clip is looked at, what the network sees, and what it should say.

B batch. A *quantile* in (0, 1) is what a time is drawn from, so that a fixed list of quantiles spreads fixed times over
those of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from model.dit_config import Objective, ProcessConfig
from trainer.config.diffusion import DiffusionLossConfig
from trainer.diffusion import flow, noise_schedule

TIME_SCALE = 1000.0
"""The network is told the times of flow matching multiplied by this, and the steps of a diffusion as they are."""


class Process(Protocol):
    """A noise process. Times are float64 [B] on the host."""

    def times(self, quantiles: Sequence[float]) -> Tensor:
        """The times at quantiles in (0, 1) of those that training draws."""
        ...

    def told(self, times: Tensor) -> Tensor:
        """What the network is told of the times, float64 [B]."""
        ...

    def weights(self, times: Tensor) -> Tensor:
        """Weights of the clips in the loss, float64 [B]."""
        ...

    def noisy(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network sees; x0 and noise [B, ...], fp32 at least."""
        ...

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict."""
        ...

    def x0(self, seen: Tensor, predicted: Tensor, times: Tensor) -> Tensor:
        """The latents without noise that a prediction means."""
        ...


class Diffusion:
    """The paper's: steps 0 to K - 1, each as likely; the network predicts x0."""

    def __init__(self, config: ProcessConfig, gamma: float) -> None:
        self.alpha_bar = noise_schedule.alpha_bars(config)
        self.gamma = gamma

    def times(self, quantiles: Sequence[float]) -> Tensor:
        steps = len(self.alpha_bar)
        return torch.tensor([float(int(quantile * steps)) for quantile in quantiles], dtype=torch.float64)

    def told(self, times: Tensor) -> Tensor:
        return times

    def weights(self, times: Tensor) -> Tensor:
        return noise_schedule.min_snr_weight(noise_schedule.signal_to_noise(self._bars(times)), self.gamma)

    def noisy(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        bars = self._bars(times)
        return _as(bars.sqrt(), x0) * x0 + _as((1 - bars).sqrt(), x0) * noise

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return x0

    def x0(self, seen: Tensor, predicted: Tensor, times: Tensor) -> Tensor:
        return predicted

    def _bars(self, times: Tensor) -> Tensor:
        return self.alpha_bar[times.long()]


class Flow:
    """Flow matching: logit-normal times, shifted towards the noise; the network predicts the velocity.

    Args:
        shift: of the times.
        mean, deviation: of the times' logits, before the shift.
    """

    def __init__(self, shift: float, mean: float, deviation: float) -> None:
        self.shift, self.mean, self.deviation = shift, mean, deviation

    def times(self, quantiles: Sequence[float]) -> Tensor:
        drawn = [flow.logit_normal_time(quantile, self.mean, self.deviation) for quantile in quantiles]
        return torch.tensor([flow.shifted(time, self.shift) for time in drawn], dtype=torch.float64)

    def told(self, times: Tensor) -> Tensor:
        return times * TIME_SCALE

    def weights(self, times: Tensor) -> Tensor:
        return torch.ones_like(times)

    def noisy(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return flow.between(x0, noise, _as(times, x0))

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return flow.velocity(x0, noise)

    def x0(self, seen: Tensor, predicted: Tensor, times: Tensor) -> Tensor:
        return flow.x0_of_velocity(seen, predicted, _as(times, seen))


def process_of(config: ProcessConfig, loss: DiffusionLossConfig, numbers: int) -> Process:
    """The process of a run.

    Args:
        numbers: of both latents of a clip, by which flow matching may shift its times.
    """
    if config.objective is Objective.x0:
        return Diffusion(config, loss.min_snr_gamma)
    return Flow(config.shift or flow.shift_of_size(numbers), loss.logit_mean, loss.logit_deviation)


def _as(factors: Tensor, like: Tensor) -> Tensor:
    """Factors [B] as [B, 1, ...], of the type and on the device of `like`; rounded once."""
    return factors.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.dim() - 1))
