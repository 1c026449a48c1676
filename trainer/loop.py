"""The training loop. It knows batches, steps and files, and no network: those belong to the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from torch import Tensor

from data_pipeline.dataset import Batch, ClipLoader, Position
from trainer import distributed
from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig
from trainer.config_loader import to_yaml
from trainer.distributed import Ranks
from trainer.preemption import Preemption
from trainer.telemetry import Telemetry


class Method(Protocol):
    """Owns networks, optimizers and their checkpoint state. Every rank makes every call."""

    facts: dict[str, float]  # tokens_per_clip, flops_per_clip of a training step

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Train on one global batch; 0-dim device tensors, `skipped` among them."""

    def schedules(self, step: int) -> dict[str, float]:
        """What is set by the step number alone: learning rates, weights."""

    def pictures(self, batch: Batch, count: int) -> Tensor:
        """Rows of clips to look at, uint8 [rows, columns, T, H, W, 3]."""

    def save(self, directory: Path) -> None:
        """Write everything that `load` needs to go on exactly."""

    def load(self, directory: Path) -> None:
        """Undo `save`."""

    def export(self, directory: Path) -> None:
        """Write the trained model for use."""


class Stopped(Enum):
    """Why a run ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


@dataclass
class TrainState:
    """Where a run stands; together with the method's state and the seeds it determines the rest."""

    step: int = 0
    position: Position = field(default_factory=lambda: Position(0, 0))

    def advance(self, batch: Batch) -> None:
        self.step += 1
        self.position = batch.position


def train(
    config: TrainConfig,
    state: TrainState,
    method: Method,
    loader: ClipLoader,
    checkpoints: Checkpoints,
    telemetry: Telemetry,
    preemption: Preemption,
) -> Stopped:
    """Step until `config.steps`, or until a rank is told to stop; a checkpoint is written at either end."""
    if state.step >= config.steps:
        return Stopped.FINISHED
    for batch in telemetry.waiting(loader.from_position(state.position)):
        schedules = method.schedules(state.step)
        terms = method.step(batch, state.step)
        preemption.ask()
        state.advance(batch)
        telemetry.record(state.step, terms, schedules)
        if telemetry.wants_pictures(state.step):
            telemetry.show(state.step, method.pictures(batch, config.telemetry.sample_clips))
        stopping = preemption.agreed()
        if stopping or state.step >= config.steps or state.step % config.checkpoint.every == 0:
            checkpoints.save(state.step, state.position, method, loader)
        if state.step >= config.steps:
            return Stopped.FINISHED
        if stopping:
            return Stopped.PREEMPTED
    raise RuntimeError("the loader ended, but its stream is endless")


class Refused(ValueError):
    """A run that cannot start: the message names the setting or file and the remedy."""


def run(config: TrainConfig, build_method: Callable[[TrainConfig, Ranks], Method]) -> Stopped:
    """Set one process of a run up, train, and clean up. Every rank calls it with the same configuration.

    Raises:
        Refused: a setting that cannot work on this device, number of ranks or dataset, or checkpoints of another run.
    """
    try:
        config.check_device(distributed.device_kind())
    except ValueError as error:
        raise Refused(str(error)) from error
    ranks = distributed.start(config.collective_timeout)
    output = Path(config.output)
    try:
        with Preemption(ranks.control) as preemption, Telemetry(config, ranks) as telemetry:
            try:
                state, method, loader, checkpoints = _prepare(config, ranks, build_method, telemetry)
            except (ValueError, FileNotFoundError) as error:
                raise Refused(str(error)) from error
            try:
                outcome = train(config, state, method, loader, checkpoints, telemetry, preemption)
            finally:
                loader.close()
            if outcome is Stopped.FINISHED:
                method.export(output / "model")
                telemetry.say(f"finished {state.step} steps; the model is in {output / 'model'}")
            else:
                telemetry.say(
                    f"stopped by {preemption.reason} after step {state.step}, which is saved; "
                    "the same command goes on from there"
                )
        return outcome
    finally:
        distributed.stop()


def _prepare(
    config: TrainConfig, ranks: Ranks, build_method: Callable[[TrainConfig, Ranks], Method], telemetry: Telemetry
) -> tuple[TrainState, Method, ClipLoader, Checkpoints]:
    """Everything that can refuse a run, the quick checks first."""
    config.split_batch(ranks.world_size)
    loader = ClipLoader(config.data, ranks.rank, ranks.world_size, pin_memory=ranks.device.type == "cuda")
    checkpoints = Checkpoints(config, ranks)
    newest = checkpoints.newest()
    if newest is not None:
        checkpoints.check(newest, loader)
    method = build_method(config, ranks)
    state = TrainState()
    if newest is not None:
        state.step, state.position = checkpoints.load(newest, method)
    if ranks.is_main:
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(to_yaml(config))
    telemetry.begin(state.step, method.facts, resumed=newest)
    return state, method, loader, checkpoints
