"""Weights before training: those of torch's own functions, and none where a network only has shapes."""

import torch
from torch import nn

from model.initial import normal_, normal_over_
from model.network import PixelHead
from model.transformer import SpaceTimeBlock


def test_scales_are_drawn_as_a_quotient_to_their_last_bits() -> None:
    """A product with the reciprocal would be another number for a width that is no power of four."""
    width = 96
    for build, rows in ((lambda: SpaceTimeBlock(width, 4, True), 6), (lambda: PixelHead(width, 2), 2)):
        torch.manual_seed(0)
        modulation = build().modulation
        torch.manual_seed(0)
        assert torch.equal(modulation, torch.randn(rows, width) / width**0.5)
        assert modulation.requires_grad


def test_nothing_is_drawn_for_a_network_of_shapes() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        weight = nn.Parameter(torch.empty(3, 5))
    normal_(weight)
    normal_over_(weight, 2.0)
    assert weight.is_meta
    assert torch.equal(torch.get_rng_state(), before)
