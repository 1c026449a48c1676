"""The training loop. It knows batches, steps and files, and no network: those belong to the method."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from data_pipeline.dataset import Batch, ClipLoader, Position, TooManyBadSamples
from data_pipeline.storage import StoreError
from trainer import distributed
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.files import step_of
from trainer.config import TrainConfig
from trainer.config_loader import to_yaml
from trainer.distributed import Ranks
from trainer.launcher import Launcher, ends_with
from trainer.nonfinite import Gradients, NonFiniteRun
from trainer.output import InUse, Unwritable, held
from trainer.preemption import Preemption
from trainer.profiler import ProfileWindow
from trainer.rollback import Rollbacks, Spike, SpikingRun, decide
from trainer.telemetry import Telemetry
from trainer.validation import Validation
from trainer.watchdog import Watchdog


class Method(Protocol):
    """Owns networks, optimizers and their checkpoint state. Every rank makes every call."""

    facts: dict[str, float]  # tokens_per_clip, flops_per_clip of a training step, at data.frames frames

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


# From the configuration, the ranks, and whether the run begins here; if not, `load` follows.
BuildMethod = Callable[[TrainConfig, Ranks, bool], Method]


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


def train(config: TrainConfig, run: Parts) -> Stopped:
    """Step until `config.steps`, or until a rank is told to stop; a checkpoint is written at either end.

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
    state, method, telemetry, preemption = run.state, run.method, run.watch.telemetry, run.watch.preemption
    for batch in telemetry.waiting(run.loader.from_position(state.position)):
        run.watch.profile.before(state.step + 1)
        schedules = method.schedules(state.step)
        terms = method.step(batch, state.step)
        preemption.ask()
        state.advance(batch)
        logged = telemetry.record(state.step, terms, schedules, batch.keys, method.gradients())
        spike = run.rollbacks.spike(state.step, logged) if logged is not None else None
        if spike is not None:
            stopping = preemption.agreed()
            _roll_back(config, run, spike)
            return Stopped.PREEMPTED if stopping else None
        if telemetry.wants_pictures(state.step):
            telemetry.show(state.step, method.pictures(batch, config.telemetry.sample_clips))
        if run.validation is not None and run.validation.due(state.step):
            _validate(config, run, run.validation)
        stopping = preemption.agreed()
        if stopping or state.step >= config.steps or state.step % config.checkpoint.every == 0:
            run.watch.watchdog.expect(f"saving after step {state.step}", config.watchdog.pause_budget)
            run.checkpoints.save(state.step, state.position, method, run.loader)
        telemetry.scalars(state.step, run.checkpoints.news())
        if state.step >= config.steps:
            return Stopped.FINISHED
        if stopping:
            return Stopped.PREEMPTED
        run.watch.watchdog.expect(f"step {state.step + 1}", config.watchdog.step_budget)
    raise RuntimeError("the loader ended, but its stream is endless")


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


class Failed(RuntimeError):
    """A run that gave up while training, and has said why and what can be done; to go on unchanged is of no use."""


class Unready(RuntimeError):
    """A run that cannot start now, and may be able to later: the store does not answer, or the output is in use."""


class Refused(ValueError):
    """A run that cannot start: the message names the setting or file and the remedy."""


def run(config: TrainConfig, build_method: BuildMethod, launcher: Launcher | None = None) -> Stopped:
    """Set one process of a run up, train, and clean up. Every rank calls it with the same configuration.

    The end of the launcher, if there is one, asks for a stop as a signal does.

    Raises:
        Refused: a setting that cannot work on this device, number of ranks or dataset, or checkpoints of another run.
        Unready: the store does not answer, or another run uses the output.
        Failed: training gave up.
    """
    output = Path(config.output)
    try:
        config.check_device(distributed.device_kind())
    except ValueError as error:
        raise Refused(str(error)) from error
    with ends_with(launcher):
        ranks = distributed.start(config.collective_timeout)
    try:
        with held(output, ranks, partial(print, flush=True)), _watchers(config, ranks, launcher) as watch:
            watch.watchdog.expect("the start", config.watchdog.start_budget)
            try:
                parts = _prepare(config, ranks, build_method, watch)
            except ValueError as error:
                raise Refused(str(error)) from error
            except StoreError as error:
                raise Unready(str(error)) from error
            try:
                outcome = train(config, parts)
            finally:
                parts.loader.close()
            watch.watchdog.expect("the end", config.watchdog.pause_budget)
            return _conclude(config, parts, outcome)
    except Unwritable as error:
        raise Refused(str(error)) from error
    except InUse as error:
        raise Unready(str(error)) from error


@contextmanager
def _watchers(config: TrainConfig, ranks: Ranks, launcher: Launcher | None) -> Iterator[Watchers]:
    """What watches one process of a run, which has joined the others and leaves them at the end."""
    output = Path(config.output)
    with Watchdog(output / "hangs", ranks.rank, enabled=config.watchdog.step_budget > 0) as watchdog:
        try:
            with (
                Preemption(ranks.control, launcher) as preemption,
                Telemetry(config, ranks) as telemetry,
                ProfileWindow(config.profile, output / "profile", ranks.rank) as profile,
            ):
                yield Watchers(watchdog, preemption, telemetry, profile)
        finally:
            distributed.stop()  # it may hang where another rank does


def _prepare(config: TrainConfig, ranks: Ranks, build_method: BuildMethod, watch: Watchers) -> Parts:
    """Everything that can refuse a run, the quick checks first."""
    telemetry = watch.telemetry
    micro_batch, _ = config.split_batch(ranks.world_size)
    loader = ClipLoader(config.data, ranks.rank, ranks.world_size, pin_memory=ranks.device.type == "cuda")
    validation = None
    if config.validation.every:
        validation = Validation(
            config.validation, config.data, batch=micro_batch, lpips_weights=config.loss.lpips_weights, ranks=ranks
        )
    checkpoints = Checkpoints(config, ranks, telemetry.say if ranks.is_main else print)
    newest = checkpoints.newest()
    if newest is not None:
        checkpoints.check(newest, loader)
    method = build_method(config, ranks, newest is None)
    state = TrainState()
    if newest is not None:
        state.step, state.position = checkpoints.load(newest, method)
    if state.step > config.steps:
        raise ValueError(
            f"steps={config.steps} is less than the {state.step} steps that {newest} has done; set steps to that or "
            "more, or choose another output"
        )
    output = Path(config.output)
    if ranks.is_main:
        (output / "config.yaml").write_text(to_yaml(config))
    telemetry.begin(state.step, method.facts, resumed=newest)
    rollbacks = Rollbacks(config.rollback, output, ranks)
    state.position = rollbacks.begin(state.step, state.position)
    return Parts(state, method, loader, checkpoints, rollbacks, validation, watch)


def _conclude(config: TrainConfig, run: Parts, outcome: Stopped) -> Stopped:
    """Export a finished run, say how it ended, and see the last upload through; how it ended in the end."""
    telemetry, model = run.watch.telemetry, Path(config.output) / "model"
    if outcome is Stopped.FINISHED:
        run.method.export(model)
        telemetry.say(f"finished {run.state.step} steps; the model is in {model}")
    else:
        telemetry.say(
            f"stopped by {run.watch.preemption.reason} after step {run.state.step}, which is saved; "
            "the same command goes on from there"
        )
    unfinished = run.checkpoints.finish(run.watch.preemption.told)
    telemetry.scalars(run.state.step, run.checkpoints.news())
    return Stopped.PREEMPTED if unfinished else outcome
