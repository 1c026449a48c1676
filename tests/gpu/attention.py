"""The attention kernels at the shapes of the base model: which one torch takes, and how fast each would be.

The fastest one at the shape "over time" belongs into the table of `model/attention.py`.
Forward and backward of `attend_within_frames` and `attend_over_time` on tensors laid out as the model lays them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from model.attention import Kernel, attend_over_time, attend_within_frames
from tests.gpu.clock import peak_bytes, seconds
from tests.gpu.findings import Context, held, measured

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ON_CPU = ("flash", "math")
CLIPS = (1, 6)


@dataclass(frozen=True)
class Shape:
    """One attention of the model: tensors [B, frames, patches, heads x size]."""

    name: str
    attend: Callable[..., Tensor]
    frames: int
    patches: int
    heads: int
    size: int


def shapes(on_gpu: bool) -> list[Shape]:
    """Those of the base model, or of a tiny one."""
    causal = partial(attend_over_time, causal=True)
    frames, patches, heads = (16, 196, 12) if on_gpu else (4, 9, 2)
    return [
        Shape("within frames", attend_within_frames, frames, patches, heads, 64),
        Shape("over time", causal, frames, patches, heads, 64),
        Shape("Q-Former", attend_over_time, frames, patches, 8, 8),
    ]


def run(context: Context) -> None:
    for shape in shapes(context.on_gpu):
        for clips in CLIPS:
            compare(context, shape, clips)


def compare(context: Context, shape: Shape, clips: int) -> None:
    """Every kernel and torch's own choice at one shape."""
    name = f"{shape.name}, {clips} clips"
    inputs = make_inputs(context, shape, clips)
    exact = attend_exactly(shape, inputs) if clips == 1 else None
    action = partial(forward_and_backward, shape, inputs)
    measured(f"{name}: torch takes", chosen(action))
    report(context, name, "torch's choice", action, shape, inputs, exact)
    if shape.attend is not attend_within_frames:
        plainly = replace(shape, attend=partial(shape.attend, kernel=Kernel.plain))
        report(context, name, "plain", partial(forward_and_backward, plainly, inputs), plainly, inputs, exact)
        if context.on_gpu:  # on the CPU, inductor would take a compiler and minutes
            compiled = replace(plainly, attend=torch.compile(plainly.attend, fullgraph=True, dynamic=False))
            action = partial(forward_and_backward, compiled, inputs)
            report(context, name, "plain, compiled", action, compiled, inputs, exact)
    for backend in BACKENDS if context.on_gpu else ON_CPU:
        action = partial(forward_and_backward, shape, inputs)
        try:
            with sdpa_kernel(BACKENDS[backend]):
                report(context, name, backend, action, shape, inputs, exact)
        except RuntimeError as error:
            measured(f"{name}: {backend}", f"cannot: {str(error).strip().splitlines()[0]}")


def make_inputs(context: Context, shape: Shape, clips: int) -> list[Tensor]:
    torch.manual_seed(0)
    size = (clips, shape.frames, shape.patches, shape.heads * shape.size)
    return [torch.randn(size, device=context.device, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]


def forward_and_backward(shape: Shape, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    out = shape.attend(*inputs, shape.heads)
    return (out, *torch.autograd.grad(out, inputs, torch.ones_like(out)))


def attend_exactly(shape: Shape, inputs: list[Tensor]) -> list[Tensor]:
    """The same numbers in fp64 on the host, softmax written out."""
    wide = [x.detach().cpu().double().requires_grad_() for x in inputs]
    q, k, v = (x.unflatten(-1, (shape.heads, shape.size)) for x in wide)  # [B, T, S, h, d]
    if shape.attend is attend_within_frames:
        scores = torch.einsum("btqhd,btkhd->bthqk", q, k) / shape.size**0.5
        out = torch.einsum("bthqk,btkhd->btqhd", scores.softmax(-1), v)
    else:
        scores = torch.einsum("bqshd,bkshd->bshqk", q, k) / shape.size**0.5
        if shape.name == "over time":
            later = torch.ones(shape.frames, shape.frames, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        out = torch.einsum("bshqk,bkshd->bqshd", scores.softmax(-1), v)
    out = out.flatten(-2)
    return [out.detach(), *torch.autograd.grad(out, wide, torch.ones_like(out))]


def report(
    context: Context,
    name: str,
    kernel: str,
    action: Callable[[], tuple[Tensor, ...]],
    shape: Shape,
    inputs: list[Tensor],
    exact: list[Tensor] | None,
) -> None:
    results = action()
    if exact is not None:
        largest = max(
            float((a.detach().cpu().double() - b).abs().max() / b.abs().max())
            for a, b in zip(results, exact, strict=True)
        )
        held(f"{name}: {kernel}, largest error", largest, 2e-2, "fp64")
    del results
    forward = partial(shape.attend, *inputs, shape.heads)
    rounds = {"rounds": 7, "each": 5} if context.on_gpu else {"rounds": 1, "each": 1}
    there, back = (1e3 * seconds(part, context.device, **rounds) for part in (forward, action))
    memory = f", {peak_bytes(action) / 1e6:.3g} MB" if context.on_gpu else ""
    measured(f"{name}: {kernel}", f"{there:.4g} ms, {back:.4g} ms with backward{memory}")


def chosen(action: Callable[[], object]) -> str:
    """The operators by which `scaled_dot_product_attention` does its work."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        action()
    names = {event.key for event in record.key_averages() if event.key.startswith("aten::_scaled_dot_product")}
    return ", ".join(sorted(name.removeprefix("aten::_scaled_dot_product_") for name in names))
