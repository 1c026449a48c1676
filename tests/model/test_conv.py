"""The convolution with its own weight gradient, fp32 by its nature, against `nn.Conv2d` in double precision."""

import copy

import pytest
import torch
from torch import Tensor, nn

from model.conv import Conv2d
from tests.tools.rounding import Moved, Results, assert_within, with_bounds

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "bias"), [(4, 2, 1, False), (4, 1, 1, True), (3, 2, 0, True)])
def test_same_function_and_gradients(kernel: int, stride: int, padding: int, bias: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    ours = Conv2d(5, 6, kernel, stride=stride, padding=padding, bias=bias)
    plain = nn.Conv2d(5, 6, kernel, stride=stride, padding=padding, bias=bias)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 11, 14).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def in_fp64(moved: Moved) -> Results:
        return value_and_gradients(moved.weights(copy.deepcopy(plain)), moved(x))

    assert_within(value_and_gradients(ours, x.clone()), *with_bounds(in_fp64))


def value_and_gradients(conv: nn.Module, x: Tensor) -> Results:
    """The convolution of x, and the gradients of the sum of its squares."""
    y = conv(x.requires_grad_())
    y.square().sum().backward()
    named = {name: parameter.grad for name, parameter in conv.named_parameters()}
    results = {"y": y.detach(), "x": x.grad} | named
    assert all(value is not None for value in results.values())
    return {name: value for name, value in results.items() if value is not None}


def test_frozen_weights_still_pass_gradients_to_the_input() -> None:
    conv = Conv2d(2, 3, 4, stride=2, padding=1).requires_grad_(False)
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None
