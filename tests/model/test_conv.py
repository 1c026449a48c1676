"""The convolution with its own weight gradient against `nn.Conv2d` in double precision."""

import pytest
import torch
from torch import nn

from model.conv import Conv2d


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "bias"), [(4, 2, 1, False), (4, 1, 1, True), (3, 2, 0, True)])
def test_same_function_and_gradients(kernel: int, stride: int, padding: int, bias: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    ours = Conv2d(5, 6, kernel, stride=stride, padding=padding, bias=bias)
    exact = nn.Conv2d(5, 6, kernel, stride=stride, padding=padding, bias=bias, dtype=torch.float64)
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 11, 14).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, expected = ours(x), exact(wide)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    pairs = [
        (x.grad, wide.grad),
        *((p.grad, q.grad) for p, q in zip(ours.parameters(), exact.parameters(), strict=True)),
    ]
    for gradient, truth in pairs:
        assert gradient is not None
        assert truth is not None
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-4)


def test_frozen_weights_still_pass_gradients_to_the_input() -> None:
    conv = Conv2d(2, 3, 4, stride=2, padding=1).requires_grad_(False)
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None
