"""How errors change from frame to frame, in closed form: PSNR of frame differences, and flicker.

Shapes: B windows, C colours, T frames, H W pixels. Values are in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.evaluation.metrics import PSNR_CEILING

LEVELS = 255.0


def difference_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """PSNR between the differences of neighbouring frames: how well movement is rebuilt, whatever stands still.

    An error that is the same in all frames does not count.

    Args:
        real, fake: [B, C, T, H, W], T at least 2.
    Returns:
        [B] float32 in dB: for each of the T - 1 differences -10 log10 of the squared error averaged over C, H and W, at
        most `PSNR_CEILING`, and the mean over the differences.
    Raises:
        ValueError: the shapes differ, or there is one frame.
    """
    error = _errors(real, fake).diff(dim=2)
    mean_square = error.square().mean(dim=(1, 3, 4))
    per_difference = -10.0 * mean_square.clamp(min=10.0 ** (-PSNR_CEILING / 10)).log10()
    return per_difference.mean(dim=1).float()


def flicker(real: Tensor, fake: Tensor) -> Tensor:
    """Variance over time of each pixel's error, averaged over colours and pixels; 0 for an error that stands still.

    Args:
        real, fake: [B, C, T, H, W], T at least 2.
    Returns:
        [B] float32, in squared levels of 255: the population variance over T of fake - real.
    Raises:
        ValueError: the shapes differ, or there is one frame.
    """
    error = _errors(real, fake) * LEVELS
    return error.var(dim=2, correction=0).mean(dim=(1, 2, 3)).float()


def _errors(real: Tensor, fake: Tensor) -> Tensor:
    """fake - real, in float64, because small errors that hardly change are subtracted from each other."""
    if real.shape != fake.shape or real.ndim != 5:
        raise ValueError(f"expected two equal [B, C, T, H, W] shapes, got {list(real.shape)} and {list(fake.shape)}")
    if real.shape[2] < 2:
        raise ValueError("windows of one frame have no change over time; measure windows of 2 frames or more")
    return fake.to(torch.float64) - real.to(torch.float64)
