"""A DiT's training step without numbers (see `trace.py`), on latents that need not exist yet."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.kind import TEXTS
from data_pipeline.store.open import open_store
from model.config import VidTwinConfig
from model.dit_config import Conditioning, LatentSpace
from model.latent_statistics import ChannelStatistics, Statistics
from trainer.config.diffusion import DiffusionConfig
from trainer.config.learning import Compile
from trainer.diffusion.builder import DiffusionBuilder
from trainer.diffusion.data import GivenBatch
from trainer.diffusion.initial import check_initial_dit
from trainer.diffusion.method import LatentDiffusion
from trainer.diffusion.stored_latents import TrainingLatents, with_texts
from trainer.distributed import Ranks
from trainer.engine.torch_private import FakeTensorMode
from trainer.estimate.meter import Meter, plain_engine
from trainer.estimate.trace import Trace, Tracer, size_of


def space_of_model(config: VidTwinConfig, classes: int, texts: str = "") -> LatentSpace:
    """The latents that a VidTwin makes of windows of all its frames.

    Args:
        config: of the VidTwin.
        classes: how many classes the clips have; 0 = none.
        texts: place of the dataset of texts that has their captions; empty = none.
    Raises:
        ValueError: `texts` is no dataset of texts.
        StoreError: the store fails.
    """
    names = tuple(f"class {number}" for number in range(classes))
    space = LatentSpace(structure_shape=config.structure_shape, dynamics_shape=config.dynamics_shape, classes=names)
    if not texts:
        return space
    description = DatasetFile.load(open_store(texts), TEXTS, named="data.text=").texts
    assert description is not None
    return with_texts(space, description)


def trace_dit(config: DiffusionConfig, micro_batch: int, space: LatentSpace) -> Trace:
    """Run one micro-batch of a DiT's training step on fake tensors.

    Args:
        space: of the latents.
    Raises:
        ValueError: a patch that does not divide the latents, or a condition that they do not have.
    """
    config = copy.deepcopy(config)
    config.init_from = ""
    config.micro_batch, config.accumulation, config.data.global_batch = micro_batch, 1, micro_batch
    config.ema.decay = 0.0
    config.compile = Compile.none  # which changes neither the operations nor, as far as anybody has measured, memory
    states = torch.get_rng_state()
    try:
        with FakeTensorMode():
            ranks = Ranks(0, 1, 0, torch.device("cpu"), None)
            method = LatentDiffusion(config, ranks, space, statistics_of(space), make_engine=plain_engine)
            batch = batch_of(space, micro_batch)
            with Meter() as meter:
                meter.follow(method.engine.module)
                method.step(batch, 0)
    finally:
        torch.set_rng_state(states)
    return Trace(
        network=size_of(method.engine.module),
        discriminator=None,
        perceptual_bytes=0,
        activations=meter.peak,
        with_gradients=meter.peak_with_gradients,
        flops=meter.flops,
    )


def tracer_of_data(builder: DiffusionBuilder) -> Tracer:
    """What traces the step on the latents that a builder has opened.

    Raises:
        ValueError: the run would begin from a DiT that does not fit the latents; the message names the key.
    """
    config = builder.config
    if config.init_from and not config.fork_from and not (Path(config.output) / "checkpoints").is_dir():
        check_initial_dit(Path(config.init_from), config.dit, builder.data.space)
    return partial(trace_dit, space=builder.data.space)


def trace_on_data(config: DiffusionConfig, micro_batch: int) -> Trace:
    """`trace_dit` on the latents of `data.shards`, which are opened for it. Raises: as `space_of_data`."""
    return trace_dit(config, micro_batch, space_of_data(config))


def space_of_data(config: DiffusionConfig) -> LatentSpace:
    """The latents of `data.shards`, with their classes where the network is told of them.

    Raises:
        ValueError: it is no dataset of latents that can be trained from.
        StoreError: the store fails.
    """
    loader = TrainingLatents(config.data, classed=config.dit.condition is Conditioning.class_)
    try:
        return loader.space
    finally:
        loader.close()


def batch_of(space: LatentSpace, clips: int) -> GivenBatch:
    """A batch of clips of the first class, whose latents are 0 and whose captions have the most tokens."""
    return GivenBatch(
        structure=torch.zeros(clips, *space.structure_shape),
        dynamics=torch.zeros(clips, *space.dynamics_shape),
        labels=[space.classes[0] if space.classes else ""] * clips,
        text=torch.zeros(clips, space.text_max_tokens, space.text_width),
        text_mask=torch.ones(clips, space.text_max_tokens, dtype=torch.bool),
        keys=[str(clip) for clip in range(clips)],
    )


def statistics_of(space: LatentSpace) -> Statistics:
    """Statistics that leave latents as they are: mean 0 and deviation 1 in every channel."""
    channels = {"structure": space.structure_shape[0]}
    channels |= dict.fromkeys(("dynamics_w", "dynamics_h"), space.dynamics_shape[0])
    return {kind: ChannelStatistics((0.0,) * count, (1.0,) * count) for kind, count in channels.items()}
