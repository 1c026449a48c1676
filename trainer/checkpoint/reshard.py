"""Loads a checkpoint on another number of ranks, ZeRO stage or precision than the one that wrote it.

DeepSpeed reads its files back only on as many ranks and at the same stage as wrote them. In every other case each rank
fills the stretches of its own flat masters, weight by weight, from the saved ones (`zero_files.py`): the fp32 masters,
Adam's moments and its step count. Then it makes the working weights from the masters, as after a step. Nothing is
rounded and no copy is written; beside its own state a rank holds one stretch of one weight in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.zero_files import (
    AVERAGE,
    MOMENTS,
    WEIGHT,
    SavedEngine,
    Sharding,
    average_file,
    average_files,
)
from trainer.engine import deepspeed_private
from trainer.engine.ema import Ema
from trainer.engine.engine import Engine


def sharding_of(engine: Engine) -> Sharding:
    """How a live engine's state is divided."""
    inner = engine.engine
    precision = "bf16" if inner.bfloat16_enabled() else "fp16" if inner.fp16_enabled() else "fp32"
    flats = engine.groups if engine.stage == 0 else len(engine.masters())
    return Sharding(inner.world_size, engine.stage, precision, flats)


def load(engines: Sequence[Engine], ema: Ema | None, directory: Path) -> SavedEngine:
    """Load the engines of a checkpoint, and `ema`, the moving average of the first engine. Every rank calls it.

    With the ranks, stage and precision that wrote the files, DeepSpeed itself reads them, bit for bit.

    Returns:
        The saved state of the first engine.
    Raises:
        ValueError: the checkpoint is of other weights, or files are missing.
    """
    files = average_files(directory)
    for engine in reversed(engines):
        saved = SavedEngine(directory / engine.name, frozen=engine.frozen)
        if saved.sharding == sharding_of(engine):
            engine.load(directory)
        else:
            restore(engine, saved)
    if ema is not None and (saved.sharding == sharding_of(engines[0]) or not files):
        ema.load(average_file(directory, engines[0].engine.global_rank if engines[0].stage > 0 else 0))
    elif ema is not None:
        averaged = SavedEngine(saved.directory, files, engines[0].frozen)
        engines[0].fill(ema.averages, partial(averaged.read, AVERAGE))
    return saved


@torch.no_grad()
def restore(engine: Engine, saved: SavedEngine) -> None:
    """Give a freshly built engine the saved state. Every rank calls it.

    Raises:
        ValueError: the weights are not those of this engine.
    """
    _check_weights(engine, saved)
    masters = engine.masters()
    deepspeed_private.begin_setting_masters(engine.engine, engine.stage)
    engine.fill(masters, partial(saved.read, WEIGHT))
    _fill_optimizer(engine, masters, saved)
    if not engine.plain:
        deepspeed_private.update_working_weights(engine.engine, engine.stage)
    for name, buffer in engine.module.named_buffers():
        if name in saved.buffers:
            buffer.copy_(saved.buffers[name])
    if saved.loss_scale is not None and engine.engine.fp16_enabled():
        engine.scaler().cur_scale = saved.loss_scale
    deepspeed_private.set_counters(engine.engine, saved.counters)


def _check_weights(engine: Engine, saved: SavedEngine) -> None:
    shapes = {name: deepspeed_private.whole_shape(weight) for name, weight in engine.learning().items()}
    saved_shapes = {name: tuple(shape) for name, shape in saved.shapes.items()}
    for name in sorted(shapes.keys() | saved_shapes.keys()):
        if shapes.get(name) != saved_shapes.get(name):
            raise ValueError(
                f"{saved.directory} is of other weights: {name} is {saved_shapes.get(name, 'not learnt')} there and "
                f"{shapes.get(name, 'not learnt')} here; set the networks as its config.yaml has them"
            )


def _fill_optimizer(engine: Engine, masters: list[Tensor], saved: SavedEngine) -> None:
    """Fill Adam's moments and step count; before Adam's first step it has none of them."""
    state = deepspeed_private.clear_moments(engine.engine, engine.stage)
    if not saved.steps:
        return
    for master in masters:
        count = torch.tensor(saved.steps, dtype=torch.float32, device=master.device)
        state[master] = {"step": count} | {kind: torch.zeros_like(master) for kind in MOMENTS}
    for kind in MOMENTS:
        engine.fill([state[master][kind] for master in masters], partial(saved.read, kind))


Divided = tuple[int, int]
"""The number of ranks, and the number of clips in one micro-batch of a rank."""


def remarks(saved: SavedEngine, engine: Engine, depending: Callable[[Divided, Divided], list[str]]) -> list[str]:
    """Lines for the console: that the state was resharded, and which settings make the losses depend on that.

    Args:
        saved, engine: the state before and now.
        depending: (before, now) -> the settings because of which other micro-batches give other losses.
    """
    before, now = saved.sharding, sharding_of(engine)
    lines = []
    if str(before) != str(now):
        lines.append(f"the checkpoint of {before} goes on with {now}")
    micro_batch = engine.engine.train_micro_batch_size_per_gpu()
    reasons = depending((before.ranks, saved.micro_batch), (now.ranks, micro_batch))
    if reasons:
        lines.append(
            f"micro-batches are {now.ranks} x {micro_batch} clips now and were {before.ranks} x {saved.micro_batch}: "
            f"with {', '.join(reasons)} the losses follow this (docs/training_scaling.md)"
        )
    return lines
