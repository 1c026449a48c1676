"""How much noise each step of a diffusion adds, and what follows from that; plain functions of fp64 tables.

Ho et al. 2020 ("DDPM"). K steps; step t turns x0 into x_t = a_t x0 + s_t eps with a_t^2 = alpha_bar_t, s_t^2 = 1 -
alpha_bar_t, and eps standard normal. SNR_t = alpha_bar_t / (1 - alpha_bar_t). The velocity is v_t = a_t eps - s_t x0
(Salimans and Ho 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.dit_config import NoiseSchedule, ProcessConfig

LINEAR = 1e-4, 0.02  # of DDPM, for 1000 steps
SCALED_LINEAR = 0.00085, 0.012  # of Stable Diffusion, for 1000 steps
COSINE_OFFSET, COSINE_LARGEST_BETA = 0.008, 0.999  # Nichol and Dhariwal 2021


def betas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Variance of the noise that each step adds, float64 [steps].

    linear and scaled_linear are defined for 1000 steps; with K steps their variances stay what they are, as in
    diffusers, so that with few steps much of the clip is left in the last one.
    """
    if schedule is NoiseSchedule.linear:
        return torch.linspace(*LINEAR, steps, dtype=torch.float64)
    if schedule is NoiseSchedule.scaled_linear:
        first, last = SCALED_LINEAR
        return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()
    bars = [_cosine_alpha_bar(step / steps) for step in range(steps + 1)]
    ratios = [1 - bars[step + 1] / bars[step] for step in range(steps)]
    return torch.tensor(ratios, dtype=torch.float64).clamp(max=COSINE_LARGEST_BETA)


def _cosine_alpha_bar(time: float) -> float:
    return math.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2


def alpha_bars(config: ProcessConfig) -> Tensor:
    """Share of x0's variance that is left after each step, float64 [steps], falling."""
    found = torch.cumprod(1 - betas(config.schedule, config.steps), dim=0)
    return with_zero_terminal_snr(found) if config.zero_terminal_snr else found


def with_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) shifted and scaled, so that the last is exactly 0 and the first stays (Lin et al. 2024)."""
    roots = alpha_bar.sqrt()
    first, last = roots[0], roots[-1]
    scaled = (roots - last) * (first / (first - last))
    scaled[0] = first
    return scaled.square()


def signal_to_noise(alpha_bar: Tensor) -> Tensor:
    """SNR of each step; 0 for pure noise."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma): the weight of Hang et al. 2023 for a network that predicts x0; gamma = 0 stands for 1.

    Their weight of the loss in eps is min(SNR, gamma) / SNR, and the squared error in eps is SNR times that in x0.
    """
    return snr.clamp(max=gamma) if gamma > 0 else torch.ones_like(snr)


def noised(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t; `alpha_bar` broadcasts against both."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def eps_of_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise in x_t."""
    return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def x0_of_eps(x_t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0; not defined in pure noise, where alpha_bar = 0."""
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def v_of_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The velocity."""
    return alpha_bar.sqrt() * eps_of_x0(x_t, x0, alpha_bar) - (1 - alpha_bar).sqrt() * x0


def x0_of_v(x_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 from the velocity; defined in pure noise as well."""
    return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v


def eps_of_v(x_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise from the velocity."""
    return (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * v
