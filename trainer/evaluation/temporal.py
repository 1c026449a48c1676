"""How errors change from frame to frame, in closed form: PSNR of frame differences, and flicker.

Both follow from the products of the errors of every two frames, which one pass over the pixels gives. Shapes: B
windows, C colours, T frames, H W pixels. Values are in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.evaluation.metrics import PSNR_CEILING

LEVELS = 255.0


def change_products(real: Tensor, fake: Tensor) -> Tensor:
    """What the errors of a window have in common from frame to frame.

    It is in float64, and errors are counted from that of the first frame, because small errors that hardly change are
    subtracted from each other.

    Args:
        real, fake: [B, C, T, H, W], T at least 2.
    Returns:
        [B, T, T] float64: with c(t) = error of frame t - error of frame 0, where an error is fake - real, the mean of
        c(s) c(t) over colours and pixels.
    Raises:
        ValueError: the shapes differ, or there is one frame.
    """
    if real.shape != fake.shape or real.ndim != 5:
        raise ValueError(f"expected two equal [B, C, T, H, W] shapes, got {list(real.shape)} and {list(fake.shape)}")
    batch, colours, frames, height, width = real.shape
    if frames < 2:
        raise ValueError("windows of one frame have no change over time; measure windows of 2 frames or more")
    products = torch.zeros(batch, frames, frames, dtype=torch.float64, device=real.device)
    for place in range(batch):
        for colour in range(colours):  # one plane at a time stays in the cache of a processor
            changes = fake[place, colour].double().sub_(real[place, colour])
            changes = changes.sub_(changes[:1].clone()).reshape(frames, -1)
            products[place].addmm_(changes, changes.T)
    return products / (colours * height * width)


def difference_psnr(products: Tensor) -> Tensor:
    """PSNR between the differences of neighbouring frames: how well movement is rebuilt, whatever stands still.

    An error that is the same in all frames does not count.

    Args:
        products: [B, T, T], of `change_products`.
    Returns:
        [B] float32 in dB: for each of the T - 1 differences -10 log10 of the squared error averaged over C, H and W, at
        most `PSNR_CEILING`, and the mean over the differences.
    """
    squares = products.diagonal(dim1=1, dim2=2)
    neighbours = products.diagonal(1, dim1=1, dim2=2)
    mean_square = squares[:, 1:] + squares[:, :-1] - 2 * neighbours
    per_difference = -10.0 * mean_square.clamp(min=10.0 ** (-PSNR_CEILING / 10)).log10()
    return per_difference.mean(dim=1).float()


def flicker(products: Tensor) -> Tensor:
    """Variance over time of each pixel's error, averaged over colours and pixels; 0 for an error that stands still.

    Args:
        products: [B, T, T], of `change_products`.
    Returns:
        [B] float32, in squared levels of 255: the population variance over T of fake - real.
    """
    variance = products.diagonal(dim1=1, dim2=2).mean(dim=1) - products.mean(dim=(1, 2))
    return (LEVELS**2 * variance.clamp(min=0)).float()
