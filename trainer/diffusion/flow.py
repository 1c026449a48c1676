"""Flow matching on straight lines (Lipman et al. 2023), with the times of Stable Diffusion 3 (Esser et al. 2024).

At time sigma in [0, 1], x = (1 - sigma) x0 + sigma eps; the network predicts the velocity dx / d sigma = eps - x0. So
sigma = 1 is pure noise, as in the schedulers of diffusers.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

REFERENCE_NUMBERS = 4096
"""Numbers of a latent whose times are not shifted: [4, 32, 32], on which logit-normal times were found."""
_LARGEST_EXPONENT = 700.0
"""math.exp raises OverflowError above 709."""


def logit_normal_time(quantile: float, mean: float, deviation: float) -> float:
    """The time in (0, 1] below which a share `quantile` in (0, 1) of the times lies, whose logits are normal.

    A logit above 37 is the time 1 in double precision.
    """
    return 1 / (1 + math.exp(min(-NormalDist(mean, deviation).inv_cdf(quantile), _LARGEST_EXPONENT)))


def shift_of_size(numbers: int) -> float:
    """The shift for latents of so many numbers, sqrt(numbers / 4096): at equal noise more numbers hide less."""
    return math.sqrt(numbers / REFERENCE_NUMBERS)


def shifted(time: float, shift: float) -> float:
    """The time moved towards the noise: shift x / (1 + (shift - 1) x). 0 and 1 stay."""
    return shift * time / (1 + (shift - 1) * time)


def between(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """x at time sigma, which broadcasts against both."""
    return (1 - sigma) * x0 + sigma * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """What the network predicts, at every time."""
    return eps - x0


def x0_of_velocity(x: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
    """The x0 that a predicted velocity means."""
    return x - sigma * predicted
