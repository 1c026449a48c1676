"""Recomputed activations give the same gradients, and repeat what they should and nothing else."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.tiny_vidtwin import noise_for, tiny, video_for

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("mode", "every"), [("full", 1), ("every", 2), ("every", 3), ("selective", 1)])
def test_recomputed_activations_give_the_same_gradients(mode: str, every: int) -> None:
    model = tiny(depth=3)
    video = video_for(model)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        output = model(video, noise_for(model, 3))
        (output.recon.square().sum() + output.kl).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    kept = gradients()
    calls: list[int] = []
    for index, block in enumerate(model.encoder.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    model.set_activation_checkpointing(mode, every)  # type: ignore[arg-type]
    again = gradients()
    assert len(kept) == len(again) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    recomputed = [index for index in range(3) if index % every == 0]
    assert sorted(calls) == sorted([0, 1, 2, *recomputed])


def test_selective_recomputation_does_not_mind_a_linear_layer_that_adds_its_bias_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny()
    video = video_for(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # biases begin as zeros, which may be added twice

    def gradients(mode: str) -> list[Tensor]:
        model.zero_grad()
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        output = model(video)
        (output.recon.square().sum() + output.kl).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    usual = gradients("none")

    def in_place(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What DeepSpeed 0.19.8 calculates instead at ZeRO 3."""
        if x.dim() == 2 and bias is not None:
            return torch.addmm(bias, x, weight.t())
        product = x.matmul(weight.t())
        return product if bias is None else product.add_(bias)

    monkeypatch.setattr(torch.nn.functional, "linear", in_place)
    assert all(torch.equal(a, b) for a, b in zip(usual, gradients("selective"), strict=True))


class _Calls(TorchDispatchMode):
    """Counts operators by the name that PyTorch gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_selective_recomputation_repeats_no_product_and_no_attention() -> None:
    model = tiny(depth=3)
    video = video_for(model)

    def backward(mode: str) -> Counter[str]:
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        output = model(video)
        with _Calls() as calls:
            (output.recon.square().sum() + output.kl).backward()
        return calls.counts

    none, selective, full = (backward(mode) for mode in ("none", "selective", "full"))
    attention = next(name for name in full if "attention" in name and "backward" not in name)
    products = [sum(counts[name] for name in ("mm", "addmm")) for counts in (none, selective, full)]
    assert [counts[attention] for counts in (none, selective, full)] == [0, 0, 2 * 2 * 3]
    # Two products in the attention within frames, four in that over time, and two in the MLP, whose last one nobody
    # needs again; in 2 x 3 blocks.
    assert [count - products[0] for count in products] == [0, 0, (2 + 4 + 1) * 2 * 3]
    assert selective["gelu"] == full["gelu"] == 2 * 3


def test_unknown_checkpointing_is_refused() -> None:
    with pytest.raises(ValueError, match="none, full, every, selective"):
        tiny().set_activation_checkpointing("some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use 1 or more"):
        tiny().set_activation_checkpointing("every", 0)
