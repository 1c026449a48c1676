"""Weights as they are before training."""

from torch import Tensor, nn


def normal_(weight: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """`nn.init.normal_`, but nothing on the meta device.

    A network is built there to learn the shapes of its weights before memory is taken. There is nothing to draw then,
    and torch would first import its compiler, which takes two seconds.

    The weight is returned whatever `nn.init.normal_` returns: diffusers replaces that function by one that does and
    returns nothing while it loads a model.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, mean, std)
    return weight
