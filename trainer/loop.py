"""The training loop. It knows batches, steps and files, and no network: those belong to the method."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from torch import Tensor

from data_pipeline.read.loader import Batch, ClipLoader, Position
from data_pipeline.read.sample_reader import TooManyBadSamples
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.files import step_of
from trainer.config.train import TrainConfig
from trainer.engine.gradient_watch import Gradients
from trainer.evaluation.validation import Validation
from trainer.faults.rollback import Rollbacks, Spike, SpikingRun, decide
from trainer.faults.stop_request import Preemption, Told
from trainer.faults.watchdog import Watchdog
from trainer.telemetry.nonfinite import NonFiniteRun
from trainer.telemetry.profiler import ProfileWindow
from trainer.telemetry.recorder import Telemetry


class Method(Protocol):
    """Owns networks, optimizers and their checkpoint state. Every rank makes every call."""

    facts: dict[str, float]  # tokens_per_clip, flops_per_clip of a training step, at data.frames frames
    terms: tuple[str, ...]  # what `step` returns at every step; other terms come and go

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Train on one global batch; 0-dim device tensors, `skipped` among them."""

    def schedules(self, step: int) -> dict[str, float]:
        """What is set by the step number alone: learning rates, weights."""

    def gradients(self) -> dict[str, Gradients]:
        """By network, what is known of non-finite gradients in the last step; nothing is computed for it."""

    def pictures(self, batch: Batch, count: int) -> Tensor:
        """Rows of clips to look at, uint8 [rows, columns, T, H, W, 3]."""

    def evaluating(self, ema: bool) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Context with a function that rebuilds clips [B, 3, T, H, W] in [0, 1], from the weights or their average.

        Training goes on after it as if it had not been. Ranks may call the function unequally often.
        """

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


@dataclass
class Watchers:
    """What accompanies a run from its first moment to its last."""

    watchdog: Watchdog
    preemption: Preemption
    telemetry: Telemetry
    profile: ProfileWindow


@dataclass
class Parts:
    """What a run is made of besides its configuration."""

    state: TrainState
    method: Method
    loader: ClipLoader
    checkpoints: Checkpoints
    rollbacks: Rollbacks
    validation: Validation | None
    watch: Watchers


class Failed(RuntimeError):
    """A run that gave up while training, and has said why and what can be done; to go on unchanged is of no use."""


def train(config: TrainConfig, run: Parts) -> Stopped:
    """Step until `config.steps`, or until a rank is told to stop; at either end every step done is in a checkpoint.

    Raises:
        Failed: more would be of no use; the message says why.
    """
    if run.state.step >= config.steps:
        return Stopped.FINISHED
    try:
        while True:
            outcome = _train_from_here(config, run)
            if outcome is not None:
                return outcome
    except (NonFiniteRun, SpikingRun) as error:
        # Now, because the first rank that ends makes the launcher end the others.
        run.watch.telemetry.say(f"training gave up: {error}", file=sys.stderr)
        raise Failed(str(error)) from error
    except TooManyBadSamples as error:  # of this rank's share of the data: no other knows of it
        print(f"training gave up: {error}", file=sys.stderr, flush=True)
        raise Failed(str(error)) from error


def _train_from_here(config: TrainConfig, run: Parts) -> Stopped | None:
    """Step on from the state; None when a loss spike has set it back."""
    state, method, telemetry, saved = run.state, run.method, run.watch.telemetry, True
    for batch in _batches(run):
        run.watch.profile.before(state.step + 1)
        schedules = method.schedules(state.step)
        terms = method.step(batch, state.step)
        state.advance(batch)
        saved = False
        logged = telemetry.record(state.step, terms, schedules, batch.keys, method.gradients())
        spike = run.rollbacks.spike(state.step, logged) if logged is not None else None
        if spike is not None:
            _roll_back(config, run, spike)
            return None
        if telemetry.wants_pictures(state.step):
            telemetry.show(state.step, method.pictures(batch, config.telemetry.sample_clips))
        if run.validation is not None and run.validation.due(state.step):
            _validate(config, run, run.validation)
        if state.step >= config.steps or state.step % config.checkpoint.every == 0:
            _save(config, run)
            saved = True
        telemetry.scalars(state.step, run.checkpoints.take_metrics())
        if state.step >= config.steps:
            return Stopped.FINISHED
        run.watch.watchdog.expect(f"step {state.step + 1}", config.watchdog.step_budget)
    if not saved:
        _save(config, run)
    return Stopped.PREEMPTED


def _batches(run: Parts) -> Iterator[Batch]:
    """Batches from the state on, each when every rank has its own, until the ranks agree to stop.

    Who is told while it waits waits no longer, nor do the others: a step begins on all ranks or on none.
    """
    preemption = run.watch.preemption
    try:
        batches = run.loader.from_position(run.state.position, preemption.check_waiting)
        for batch in run.watch.telemetry.waiting(batches):
            preemption.check()
            yield batch
            if preemption.told():
                preemption.check_waiting()
    except Told:
        return
    raise RuntimeError("the loader ended, but its stream is endless")


def _save(config: TrainConfig, run: Parts) -> None:
    run.watch.watchdog.expect(f"saving after step {run.state.step}", config.watchdog.pause_budget)
    run.checkpoints.save(run.state.step, run.state.position, run.method, run.loader)


def _validate(config: TrainConfig, run: Parts, validation: Validation) -> None:
    run.watch.watchdog.expect(f"validation after step {run.state.step}", config.watchdog.pause_budget)
    with run.watch.telemetry.aside():
        values = validation.run(run.method, run.watch.preemption.told)
    if values is not None:
        run.watch.telemetry.validated(run.state.step, values)


def _roll_back(config: TrainConfig, run: Parts, spike: Spike) -> None:
    """Weights, optimizers and random generators of the last good checkpoint; the data where they are now."""
    state, found = run.state, run.state.step
    run.watch.watchdog.expect(f"going back after step {found}", config.watchdog.pause_budget)
    directory = run.checkpoints.before(spike.good)
    if directory is None:
        raise SpikingRun(
            f"{config.rollback.term} spikes after step {spike.good} ({spike.values}, median before "
            f"{spike.median:.4g}), and there is no checkpoint from before it to go back to; lower checkpoint.every or "
            "raise checkpoint.keep for the next run, or set rollback.factor=0"
        )
    to = step_of(directory.name)
    assert to is not None
    run.checkpoints.set_back(to)  # from here to the record, a run that is killed goes on from there and spikes again
    state.step, then = run.checkpoints.load(directory, run.method)
    decision = decide(spike, config.rollback, state.step, then, found, state.position)
    run.rollbacks.record(decision)
    run.watch.telemetry.rolled_back(state.step, decision.text, asdict(decision))
