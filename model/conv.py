"""A 2-D convolution with a faster weight gradient on CPUs.

oneDNN's weight gradient of a channels-last fp32 convolution runs at about half the speed of its forward pass; the same
sum as one matrix product a frame does not (docs/performance.md). Everywhere else this is `nn.Conv2d`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Conv2d(torch.autograd.Function):
    """x [N, C, H, W] channels-last, weight [O, C, k, k], same stride and padding along both axes, no bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            steps, borders = [ctx.stride] * 2, [ctx.padding] * 2
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, steps, borders, [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(x, grad, weight.shape[-1], ctx.stride, ctx.padding)
        return grad_x, grad_weight, None, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Gradient [O, C, k, k] of a convolution's weight: for each image, grad^T times the patches its outputs saw.

    Args:
        x: input [N, C, H, W].
        grad: gradient at the output [N, O, h, w].
    """
    images = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)).contiguous()  # [N, H', W', C]
    grads = grad.permute(0, 2, 3, 1).contiguous()  # [N, h, w, O]
    _, height, width, out = grads.shape
    channels = x.shape[1]
    total = grad.new_zeros(out, kernel * kernel * channels)
    for image, g in zip(images, grads, strict=True):
        row, column, _ = image.stride()
        # overlapping view [h, w, k, k*C]: a row of a patch is contiguous because columns and channels are
        patches = image.as_strided((height, width, kernel, kernel * channels), (stride * row, stride * column, row, 1))
        total.addmm_(g.view(-1, out).t(), patches.reshape(height * width, -1))
    return total.view(out, kernel, kernel, channels).permute(0, 3, 1, 2)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with square kernels, same function and gradients."""

    def forward(self, input: Tensor) -> Tensor:
        plain = input.device.type != "cpu" or input.dtype != torch.float32 or not self.weight.requires_grad
        if plain or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            return super().forward(input)
        assert not isinstance(self.padding, str)
        y = _Conv2d.apply(input, self.weight, self.stride[0], self.padding[0])
        return y if self.bias is None else y + self.bias[:, None, None]
