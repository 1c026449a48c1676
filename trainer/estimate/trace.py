"""A training step without numbers: what it would allocate and compute, from shapes alone.

The code of the step (here `autoencoder.py`, and in `trace_dit.py` `diffusion/method.py`) runs on PyTorch's fake
tensors, which have shapes and no memory, with plain modules in place of the DeepSpeed engines. So the figures follow
the code, and a laptop estimates a preset for eight GPUs in seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.read.loader import Batch, Position
from trainer.autoencoder import Autoencoder
from trainer.config.learning import Compile
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.torch_private import FakeTensorMode
from trainer.estimate.meter import Meter, plain_engine
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
        network, discriminator: sizes of the network that is trained, and of VidTwin's discriminator, which is None
            where a run has none.
        perceptual_bytes: weights of the perceptual networks: the loss's, and validation's own, which stay fp32.
        activations: most bytes at once beside weights, gradients of weights and optimizer state.
        with_gradients: most bytes at once of activations and gradients of the network's weights together, where all
            of these stay until the step.
        flops: floating-point operations of matrix products, convolutions and attention, of the whole micro-batch, with
            what is recomputed.
    """

    network: Network
    discriminator: Network | None
    perceptual_bytes: int
    activations: int
    with_gradients: int
    flops: float


Tracer = Callable[[Any, int], Trace]
"""Traces one micro-batch: takes the configuration of a training and the clips of the micro-batch."""


def trace(config: TrainConfig, micro_batch: int) -> Trace:
    """Run one micro-batch of a VidTwin's training step on fake tensors, with its adversarial term."""
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
            method = Autoencoder(config, ranks, make_engine=plain_engine, make_perceptual=untrained_perceptual)
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
        network=size_of(method.generator.module),
        discriminator=size_of(method.discriminator.module) if method.discriminator is not None else None,
        perceptual_bytes=sum(map(_weights, [*networks, *([perceptual] if perceptual is not None else [])])),
        activations=meter.peak,
        with_gradients=meter.peak_with_gradients,
        flops=meter.flops,
    )


def _batch(config: TrainConfig, clips: int) -> Batch:
    video = torch.zeros(clips, 3, config.data.frames, config.data.image_size, config.data.image_size, dtype=torch.uint8)
    names = [""] * clips
    return Batch(
        video=video, captions=names, labels=names, keys=names, indices=torch.zeros(clips).long(), position=Position()
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _weights(module: nn.Module) -> int:
    """Bytes of everything that a module keeps."""
    return sum(map(_bytes, module.state_dict().values()))


def size_of(module: nn.Module) -> Network:
    """Parameters of a network, and bytes of its buffers."""
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return Network(learning, frozen, buffer_bytes=sum(_bytes(b) for b in module.buffers()))
