"""Attention along either axis of activations [B, T, S, C], which it reads through strides, and its kernels.

B batch, T frames, S patches of a frame, C width, h heads.
"""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.precision import at_least_fp32


class Kernel(Enum):
    """How attention over time is computed; all give the same numbers but for rounding."""

    torch = "torch"  # what scaled_dot_product_attention chooses by itself
    efficient = "efficient"  # its memory-efficient kernel, on a GPU only
    cudnn = "cudnn"  # cuDNN's kernel, on a GPU only, in 16 bits only
    plain = "plain"  # two batched products and a softmax


# A clip has few frames. Flash attention works on tiles of 128, so it may do 64 times the arithmetic that 16 frames
# need; whether another kernel wins shows the row `attention` of `python -m tests.gpu`. This table is where its result
# goes: by type of device, up to which number of frames which kernel is the fastest. Longer axes are torch's choice.
FASTEST_OVER_TIME: dict[str, tuple[int, Kernel]] = {"cpu": (0, Kernel.torch), "cuda": (0, Kernel.torch)}


def kernel_over_time(device: str, frames: int) -> Kernel:
    """The kernel for attention over time.

    Args:
        device: type of the device, 'cpu' or 'cuda'; any other is torch's choice.
        frames: the longer one of the two time axes.
    """
    most, kernel = FASTEST_OVER_TIME.get(device, (0, Kernel.torch))
    return kernel if frames <= most else Kernel.torch


def attend_within_frames(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention among the S patches of each frame.

    Args:
        q, k, v: [B, T, S, C], the last dimension contiguous; they may be parts of one tensor [B, T, S, 3C].
    Returns:
        [B, T, S, C].
    """
    batch, frames, patches, width = q.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch * frames, patches, heads, width // heads).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(split(q), split(k), split(v))
    return mixed.transpose(1, 2).reshape(batch, frames, patches, width)


def attend_over_time(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attention among the frames of each patch position.

    Patch positions and heads lie side by side in memory and become one head axis of S*h: no copy, any batch size.

    Args:
        q: [B, T_q, S, C], contiguous.
        k, v: [B, T_k, S, C], contiguous.
        heads: h.
        causal: query t sees keys 0 to t only.
        dropout: probability, on the attention weights.
        kernel: None for that of `kernel_over_time`.
    Returns:
        [B, T_q, S, C].
    """
    batch, _, patches, width = q.shape
    kernel = kernel or kernel_over_time(q.device.type, max(q.shape[1], k.shape[1]))

    def split(x: Tensor) -> Tensor:
        return x.view(batch, -1, patches * heads, width // heads).transpose(1, 2)

    mixed = _attend(kernel, split(q), split(k), split(v), causal, dropout)
    return mixed.transpose(1, 2).reshape(batch, -1, patches, width)


def _attend(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float) -> Tensor:
    """Attention of q [B, h, T_q, d] to k and v [B, h, T_k, d]."""
    if kernel is Kernel.plain:
        return _attend_plainly(q, k, v, causal, dropout)
    if kernel is Kernel.torch:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)
    backend = SDPBackend.EFFICIENT_ATTENTION if kernel is Kernel.efficient else SDPBackend.CUDNN_ATTENTION
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float) -> Tensor:
    """The definition, softmax in fp32 at least."""
    scores = at_least_fp32((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2))
    if causal:
        query, key = (torch.arange(x.shape[2], device=x.device) for x in (q, k))
        scores = scores.masked_fill(key > query[:, None], -torch.inf)
    weights = scores.softmax(-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v
