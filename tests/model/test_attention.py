"""The kernels of attention over time against the definition, written out in loops."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model import attention
from model.attention import Kernel, attend_over_time, kernel_over_time

pytestmark = pytest.mark.numeric
ON_CPU = (Kernel.torch, Kernel.plain)


def by_definition(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    """One clip, query, patch and head after the other."""
    size = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for clip in range(len(q)):
        for t in range(q.shape[1]):
            seen = t + 1 if causal else k.shape[1]
            for patch in range(q.shape[2]):
                for place in (slice(head * size, (head + 1) * size) for head in range(heads)):
                    scores = k[clip, :seen, patch, place] @ q[clip, t, patch, place] / size**0.5
                    weights = scores.exp() / scores.exp().sum()
                    out[clip, t, patch, place] = weights @ v[clip, :seen, patch, place]
    return out


@pytest.mark.parametrize("kernel", ON_CPU)
@pytest.mark.parametrize(("frames", "others", "causal"), [(4, 4, True), (4, 4, False), (3, 5, False), (1, 1, True)])
def test_every_kernel_is_the_definition(kernel: Kernel, frames: int, others: int, causal: bool) -> None:
    torch.manual_seed(0)
    sizes = (frames, others, others)
    parts = [torch.randn(2, count, 3, 8, dtype=torch.float64, requires_grad=True) for count in sizes]
    weight = torch.randn(2, frames, 3, 8, dtype=torch.float64)
    results = []
    for out in (attend_over_time(*parts, 2, causal=causal, kernel=kernel), by_definition(*parts, 2, causal)):
        results.append([out, *torch.autograd.grad((out * weight).sum(), parts)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_dropout_of_the_plain_kernel_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 6, 1, 8).unbind()
    v = torch.ones(1, 6, 1, 8)  # so that a result is the sum of the weights that are left
    kept = attend_over_time(q, k, v, 2, kernel=Kernel.plain)
    torch.testing.assert_close(kept, torch.ones_like(kept))
    draws = torch.stack([attend_over_time(q, k, v, 2, dropout=0.5, kernel=Kernel.plain) for _ in range(2000)])
    assert draws.std(0).min() > 0.1
    assert (draws.mean(0) - 1).abs().max() < 6 * draws.std(0).max() / 2000**0.5


@pytest.fixture
def plain_up_to_4() -> Iterator[None]:
    before = dict(attention.FASTEST_OVER_TIME)
    attention.FASTEST_OVER_TIME["cpu"] = (4, Kernel.plain)
    yield
    attention.FASTEST_OVER_TIME.update(before)


@pytest.mark.usefixtures("plain_up_to_4")
def test_the_table_chooses_by_device_and_number_of_frames() -> None:
    assert [kernel_over_time("cpu", frames) for frames in (1, 4, 5)] == [Kernel.plain, Kernel.plain, Kernel.torch]
    assert kernel_over_time("mps", 4) is Kernel.torch
    calls = torch.zeros(3, 1, 4, 3, 8).unbind()
    with torch.profiler.profile() as record:
        attend_over_time(*calls, 2)
    assert not any("scaled_dot_product" in event.key for event in record.key_averages())


@pytest.mark.parametrize("kernel", ON_CPU)
def test_a_compiler_sees_one_graph(kernel: Kernel) -> None:
    parts = torch.randn(3, 1, 4, 3, 8).unbind()
    seen = torch._dynamo.explain(attend_over_time)(*parts, 2, causal=True, kernel=kernel)
    torch._dynamo.reset()
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons
