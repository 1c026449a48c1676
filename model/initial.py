"""Weights as they are before training."""

import torch
from torch import Tensor, nn


def normal_(weight: Tensor, mean: float = 0.0, std: float = 1.0) -> None:
    """`nn.init.normal_`, but nothing on the meta device.

    A network is built there to learn the shapes of its weights before memory is taken. There is nothing to draw then,
    and torch would first import its compiler, which takes two seconds.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, mean, std)


def normal_over_(weight: Tensor, divisor: float) -> None:
    """`torch.randn(...) / divisor`, but nothing on the meta device, as `normal_`.

    `normal_` with a standard deviation multiplies, which for most divisors gives weights of other last bits.
    """
    if not weight.is_meta:
        nn.init.normal_(weight)
        with torch.no_grad():
            weight /= divisor
