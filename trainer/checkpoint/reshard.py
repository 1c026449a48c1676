"""Going on with another number of ranks, ZeRO stage or precision than the checkpoint's.

DeepSpeed reads its files back only on as many ranks and at the stage that wrote them. Otherwise each rank takes, weight
by weight, the stretch that its own flat masters hold out of the saved ones (`saved.py`): the fp32 masters, Adam's
moments and count, and then the working weights from the masters, as after a step. Nothing is rounded, no copy is
written, and beside its own state a rank holds one stretch of one weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.checkpoint.zero_files import (
    AVERAGE,
    MOMENTS,
    WEIGHT,
    Division,
    Piece,
    SavedEngine,
    average_file,
    average_files,
)
from trainer.config.train import TrainConfig
from trainer.engine import deepspeed_private
from trainer.engine.ema import Ema
from trainer.engine.engine import Engine


def division_of(engine: Engine) -> Division:
    """How a live engine's state is cut."""
    inner = engine.engine
    precision = "bf16" if inner.bfloat16_enabled() else "fp16" if inner.fp16_enabled() else "fp32"
    return Division(inner.world_size, engine.stage, precision)


def load(engines: Sequence[Engine], ema: Ema | None, directory: Path) -> SavedEngine:
    """Load the engines of a checkpoint, and `ema`, the moving average of the first; every rank calls it.

    On the ranks, at the stage and in the precision that wrote them, DeepSpeed reads its own files, bit for bit.

    Returns:
        What was saved of the first engine.
    Raises:
        ValueError: it is of other weights, or files are missing.
    """
    files = average_files(directory)
    for engine in reversed(engines):
        saved = SavedEngine(directory / engine.name, frozen=engine.frozen)
        if saved.division == division_of(engine):
            engine.load(directory)
        else:
            restore(engine, saved)
    if ema is not None and (saved.division == division_of(engines[0]) or not files):
        ema.load(average_file(directory, engines[0].engine.global_rank if engines[0].stage > 0 else 0))
    elif ema is not None:
        averaged = SavedEngine(saved.directory, files, engines[0].frozen)
        fill(ema.averages, local_pieces(engines[0]), averaged, AVERAGE)
    return saved


@torch.no_grad()
def restore(engine: Engine, saved: SavedEngine) -> None:
    """Bring a freshly built engine to the saved state; every rank calls it.

    Raises:
        ValueError: the weights are not those of this engine.
    """
    _check_weights(engine, saved)
    pieces, masters = local_pieces(engine), engine.masters()
    deepspeed_private.before_masters_are_set(engine.engine, engine.stage)
    fill(masters, pieces, saved, WEIGHT)
    _fill_optimizer(engine, masters, pieces, saved)
    if not engine.plain:
        deepspeed_private.publish_masters(engine.engine, engine.stage)
    for name, buffer in engine.module.named_buffers():
        if name in saved.buffers:
            buffer.copy_(saved.buffers[name])
    if saved.loss_scale is not None and engine.engine.fp16_enabled():
        engine.scaler().cur_scale = saved.loss_scale
    deepspeed_private.set_counters(engine.engine, saved.counters)


def local_pieces(engine: Engine) -> dict[str, Piece]:
    """Which stretch of which weight lies where in this rank's `engine.masters()`."""
    if engine.stage == 0:
        return {name: Piece(0, w.numel(), index, 0) for index, (name, w) in enumerate(_learning(engine).items())}
    places = deepspeed_private.places(engine.engine, engine.stage, _learning(engine).items())
    return {name: Piece(*place) for name, place in places}


@torch.no_grad()
def fill(flats: list[Tensor], pieces: dict[str, Piece], saved: SavedEngine, kind: str) -> None:
    """Fill this rank's flat tensors of one kind from the saved ones."""
    for name, piece in pieces.items():
        if piece.count:
            stretch = flats[piece.flat].detach().view(-1)[piece.offset : piece.offset + piece.count]
            stretch.copy_(saved.read(kind, name, piece.start, piece.count))


def _learning(engine: Engine) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}


def _check_weights(engine: Engine, saved: SavedEngine) -> None:
    here = {name: deepspeed_private.whole_shape(weight) for name, weight in _learning(engine).items()}
    there = {name: tuple(shape) for name, shape in saved.shapes.items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{saved.directory} is of other weights: {name} is {there.get(name, 'not learnt')} there and "
                f"{here.get(name, 'not learnt')} here; set freeze, model.* and discriminator.* as they were"
            )


def _fill_optimizer(engine: Engine, masters: list[Tensor], pieces: dict[str, Piece], saved: SavedEngine) -> None:
    """Adam's moments and count; before its first step there are none."""
    state = deepspeed_private.forget_moments(engine.engine, engine.stage)
    if not saved.steps:
        return
    for master in masters:
        count = torch.tensor(saved.steps, dtype=torch.float32, device=master.device)
        state[master] = {"step": count} | {kind: torch.zeros_like(master) for kind in MOMENTS}
    for kind in MOMENTS:
        fill([state[master][kind] for master in masters], pieces, saved, kind)


def remarks(config: TrainConfig, saved: SavedEngine, engine: Engine) -> list[str]:
    """What to tell whoever resumes: that the state was dealt anew, and which settings make the losses follow that."""
    before, now = saved.division, division_of(engine)
    lines = []
    if before != now:
        lines.append(f"the checkpoint of {before} goes on with {now}")
    micro_batch = engine.engine.train_micro_batch_size_per_gpu()
    reasons = follows_division(config, (before.ranks, saved.micro_batch), (now.ranks, micro_batch))
    if reasons:
        lines.append(
            f"micro-batches are {now.ranks} x {micro_batch} clips now and were {before.ranks} x {saved.micro_batch}: "
            f"with {', '.join(reasons)} the losses follow this (docs/training.md)"
        )
    return lines


def follows_division(config: TrainConfig, before: tuple[int, int], now: tuple[int, int]) -> list[str]:
    """Settings under which a run goes on otherwise when its batch is divided otherwise.

    Args:
        before, now: ranks, and clips of one of their micro-batches.
    """
    reasons = []
    heard = config.gan.weight > 0
    if heard and config.discriminator.norm == "batch" and before[1] != now[1]:
        reasons.append("discriminator.norm=batch")
    measured = [division[1] if config.gan.local_weight else division[0] * division[1] for division in (before, now)]
    if heard and config.gan.adaptive and measured[0] != measured[1]:
        reasons.append(f"gan.local_weight={str(config.gan.local_weight).lower()}")
    if config.model.structure.dropout > 0 and before != now:
        reasons.append(f"model.structure.dropout={config.model.structure.dropout:g}")
    return reasons
