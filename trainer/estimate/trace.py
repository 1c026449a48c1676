"""A training step without numbers: what it would allocate and compute, from shapes alone.

The code of the step (`autoencoder.py`) runs on PyTorch's fake tensors, which have shapes and no memory, with plain
modules in place of the DeepSpeed engines. So the figures follow the code, and a laptop estimates a preset for eight
GPUs in seconds.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from data_pipeline.read.loader import Batch, Position
from trainer.autoencoder import Autoencoder
from trainer.config.learning import Compile, Precision
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.engine import EngineSettings
from trainer.engine.torch_private import (
    CPU_ATTENTION,
    CPU_ATTENTION_BACKWARD,
    FakeTensorMode,
    TorchDispatchMode,
    tree_leaves,
)
from trainer.perceptual import NETWORKS, untrained_perceptual


@dataclass(frozen=True)
class Network:
    """Parameters of one network: learning, frozen; and bytes of its buffers."""

    learning: int
    frozen: int
    buffer_bytes: int


@dataclass(frozen=True)
class Trace:
    """What one micro-batch of the training step takes, with everything switched on that the run will switch on.

    Args:
        generator, discriminator: sizes of the networks; the second is None where a run has none.
        perceptual_bytes: weights of the perceptual networks: the loss's, and validation's own, which stay fp32.
        activations: most bytes at once beside weights, gradients of weights and optimizer state.
        with_gradients: most bytes at once of activations and gradients of the generator's weights together, where all
            of these stay until the step.
        flops: floating-point operations of matrix products, convolutions and attention, of the whole micro-batch, with
            what is recomputed.
    """

    generator: Network
    discriminator: Network | None
    perceptual_bytes: int
    activations: int
    with_gradients: int
    flops: float


def trace(config: TrainConfig, micro_batch: int) -> Trace:
    """Run one micro-batch of a configuration's training step on fake tensors, with its adversarial term."""
    config = copy.deepcopy(config)
    config.init_from = ""
    config.micro_batch, config.accumulation, config.data.global_batch = micro_batch, 1, micro_batch
    config.ema.decay = 0.0
    config.compile = Compile.none  # which changes neither the operations nor, as far as anybody has measured, memory
    config.gan = replace(config.gan, local_weight=True)  # only to leave the other ranks out of it
    adversarial_step = config.gan.start + config.gan.warmup + config.gan.ramp
    states = torch.get_rng_state()
    try:
        with FakeTensorMode():
            ranks = Ranks(0, 1, 0, torch.device("cpu"), None)
            method = Autoencoder(config, ranks, make_engine=_plain_engine, make_perceptual=untrained_perceptual)
            batch = _batch(config, micro_batch)
            with Meter() as meter:
                meter.follow(method.generator.module)
                method.step(batch, adversarial_step)
    finally:
        torch.set_rng_state(states)
    perceptual = method.reconstruction.perceptual
    with torch.device("meta"):
        networks = [NETWORKS[name]() for name in config.validation_networks()]
    return Trace(
        generator=_size(method.generator.module),
        discriminator=_size(method.discriminator.module) if method.discriminator is not None else None,
        perceptual_bytes=sum(map(_weights, [*networks, *([perceptual] if perceptual is not None else [])])),
        activations=meter.peak,
        with_gradients=meter.peak_with_gradients,
        flops=meter.flops,
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


class _PlainEngine:
    """What `Autoencoder` asks of an engine, without DeepSpeed."""

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
        """Nothing: state and its update are reckoned by memory.py."""

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.zeros((), device=device), torch.zeros((), device=device)

    def masters(self) -> list[Tensor]:
        return []

    def exact(self, name: str) -> Tensor | None:
        return None


def _plain_engine(name: str, module: nn.Module, settings: EngineSettings) -> Any:
    return _PlainEngine(module, settings.precision)


def _batch(config: TrainConfig, clips: int) -> Batch:
    video = torch.zeros(clips, 3, config.data.frames, config.data.image_size, config.data.image_size, dtype=torch.uint8)
    names = [""] * clips
    return Batch(
        video=video, captions=names, labels=names, keys=names, indices=torch.zeros(clips).long(), position=Position()
    )


def _cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """As DeepSpeed does, buffers excepted. (`Module.to` cannot swap fake parameters.)"""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=parameter.requires_grad))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _weights(module: nn.Module) -> int:
    """Bytes of everything that a module keeps."""
    return sum(map(_bytes, module.state_dict().values()))


def _size(module: nn.Module) -> Network:
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return Network(learning, frozen, buffer_bytes=sum(_bytes(b) for b in module.buffers()))


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
