"""What a step is traced with: a meter of memory and operations, and engines without DeepSpeed, on fake tensors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from trainer.config.learning import Precision
from trainer.engine.engine_settings import EngineSettings
from trainer.engine.torch_private import (
    CPU_ATTENTION,
    CPU_ATTENTION_BACKWARD,
    TorchDispatchMode,
    tree_leaves,
)


class Meter(TorchDispatchMode):
    """Counts, inside it, the bytes of the tensors that operators make while they live, and floating-point operations.

    Attributes:
        now, peak: bytes, gradients of followed modules left out.
        peak_with_gradients: the same with them.
        flops: of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.gradients = self.peak = self.peak_with_gradients = 0
        self.flops = 0.0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def follow(self, module: nn.Module) -> None:
        """Count the gradients of a module's parameters, once they are whole, as gradients."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._settle)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Storages of arguments existed before this operator, and operators that work in place return them.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._seen.add(leaf.untyped_storage())
        result = func(*args, **(kwargs or {}))
        if (count := _FLOPS.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += (size := storage.nbytes())
                self.peak = max(self.peak, self.now)
                self.peak_with_gradients = max(self.peak_with_gradients, self.now + self.gradients)
                weakref.finalize(storage, self._freed, size)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size

    def _settle(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        size = parameter.grad.untyped_storage().nbytes()
        self.now -= size
        self.gradients += size


class PlainEngine:
    """What a training method asks of an engine, without DeepSpeed."""

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        self.module = module
        if precision is not Precision.fp32:
            _cast_parameters(module, torch.bfloat16 if precision is Precision.bf16 else torch.float16)
        self.frozen: dict[str, Tensor] = {}
        self.loss_scale: float | None = None

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        """Nothing: state and its update are estimated by memory.py."""

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.zeros((), device=device), torch.zeros((), device=device)

    def masters(self) -> list[Tensor]:
        return []

    def exact(self, name: str) -> Tensor | None:
        return None


def plain_engine(name: str, module: nn.Module, settings: EngineSettings) -> Any:
    """A `MakeEngine` of plain engines."""
    return PlainEngine(module, settings.precision)


def _cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters as DeepSpeed does, and no buffers. (`Module.to` cannot swap fake parameters.)"""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=parameter.requires_grad))


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


# PyTorch's table knows the attention kernels of GPUs only.
_FLOPS: dict[Any, Any] = {
    **flop_registry,
    CPU_ATTENTION: _attention,
    CPU_ATTENTION_BACKWARD: _attention_backward,
}
