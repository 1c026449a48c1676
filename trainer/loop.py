"""The training loop. It knows batches, steps and files, and no network: the networks belong to the method."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Generic

from data_pipeline.read.loader import Position
from data_pipeline.read.two_tries import TooManyBadSamples
from trainer import garbage
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.files import step_of
from trainer.checkpoint.history import History, changes_since
from trainer.checkpoint.retention import Best
from trainer.config.run import RunConfig
from trainer.faults.rollback import Rollbacks, Spike, SpikingRun, decide
from trainer.faults.stop_request import StopRequest, StopRequested
from trainer.faults.time_limit import TimeLimit
from trainer.faults.watchdog import Watchdog
from trainer.method import B, Batch, Loader, Method
from trainer.randomness import generators_kept
from trainer.telemetry.nonfinite import NonFiniteRun
from trainer.telemetry.profiler import ProfileWindow
from trainer.telemetry.recorder import Telemetry


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
        """One more step is done, and its batch read."""
        self.step += 1
        self.position = batch.position


@dataclass
class Run(Generic[B]):
    """What a run is made of."""

    config: RunConfig
    state: TrainState
    method: Method[B]
    loader: Loader[B]
    checkpoints: Checkpoints
    history: History
    rollbacks: Rollbacks
    watchdog: Watchdog
    stop_request: StopRequest
    time_limit: TimeLimit
    telemetry: Telemetry
    profile: ProfileWindow


class Failed(RuntimeError):
    """A run gave up while training and has printed why; starting the same command again would not help."""


def train(run: Run[B]) -> Stopped:
    """Step until `config.steps`, or until a rank is asked to stop or its time is over; every step done is saved then.

    Raises:
        Failed: training on would not help; the message says why.
    """
    if run.state.step >= run.config.steps:
        return Stopped.FINISHED
    try:
        with garbage.collected_on_request():
            while True:
                outcome = _train_from_here(run)
                if outcome is not None:
                    return outcome
    except (NonFiniteRun, SpikingRun) as error:
        _settle(run)  # every rank raises these errors, so every rank calls this
        text = f"{error}{_next_start(run) if isinstance(error, NonFiniteRun) else ''}"
        # The message must come now, because the launcher ends all ranks as soon as the first one has ended.
        run.telemetry.say(f"training gave up: {text}", file=sys.stderr)
        raise Failed(text) from error
    except TooManyBadSamples as error:
        # Only this rank knows of it, because the samples are of its own share; so this rank prints, main or not.
        print(f"training gave up: {error}", file=sys.stderr, flush=True)
        raise Failed(str(error)) from error


def _next_start(run: Run[B]) -> str:
    """What the next start begins from, for the end of a message; every rank calls it."""
    newest = run.checkpoints.before(run.state.step)
    return (
        f": the run goes on from {newest}" if newest is not None else ": the run begins anew, as nothing is saved yet"
    )


def _train_from_here(run: Run[B]) -> Stopped | None:
    """Step on from the state; None when a loss spike has set the run back."""
    config, state, method, telemetry = run.config, run.state, run.method, run.telemetry
    saved = True
    for batch in _batches(run):
        run.profile.before(state.step + 1)
        schedules = method.schedules(state.step)
        with run.time_limit.step():
            terms = method.step(batch, state.step, telemetry.is_log_step(state.step + 1))
            state.advance(batch)
            run.history.stepped(state.step)
            logged = telemetry.record(
                state.step, terms, schedules, batch.keys, method.gradients(), method.forward_seconds
            )
        saved = False
        if logged is not None:
            garbage.collect()
        spike = run.rollbacks.spike(state.step, logged) if logged is not None else None
        if spike is not None:
            _roll_back(run, spike)
            return None
        if telemetry.wants_pictures(state.step):
            _show(run, batch)
        best = _validate(run) if config.validation.due(state.step) else None
        if best is not None or config.checkpoint.due(state.step, config.steps):
            _save(run, wait=state.step >= config.steps, best=best)
            saved = True
        run.checkpoints.poll()
        metrics = run.checkpoints.take_metrics()
        if "save_complete_seconds" in metrics:
            run.time_limit.saved(metrics["save_complete_seconds"])
        telemetry.scalars(state.step, metrics)
        if state.step >= config.steps:
            return Stopped.FINISHED
        run.watchdog.expect(f"step {state.step + 1}", config.watchdog.step_budget)
    if not saved:
        _save(run, wait=True)
    _settle(run)
    return Stopped.PREEMPTED


def _batches(run: Run[B]) -> Iterator[B]:
    """Batches from the state on, until the ranks agree to stop.

    A batch is handed out when every rank has its own. When a rank is asked to stop while it waits for its batch, it
    stops waiting, and so do the other ranks. Therefore a step begins on all ranks or on none.
    """
    stop_request = run.stop_request
    try:
        batches = run.loader.from_position(run.state.position, stop_request.check_waiting)
        for batch in run.telemetry.pace.waiting(batches, run.method.length):
            stop_request.check()
            yield batch
            if stop_request.stop_requested():
                stop_request.check_waiting()
    except StopRequested:
        return
    raise RuntimeError("the loader ended, but its stream is endless")


def _save(run: Run[B], *, wait: bool, best: Best | None = None) -> None:
    run.watchdog.expect(f"saving after step {run.state.step}", run.config.watchdog.pause_budget)
    run.telemetry.keep()
    run.checkpoints.save(run.state.step, run.state.position, run.method, run.loader, wait=wait, best=best)


def _settle(run: Run[B]) -> None:
    run.watchdog.expect(f"completing the last save, after step {run.state.step}", run.config.watchdog.pause_budget)
    run.checkpoints.settle()


def _show(run: Run[B], batch: B) -> None:
    run.watchdog.expect(f"pictures after step {run.state.step}", run.config.watchdog.pause_budget)
    with run.telemetry.pace.aside(), generators_kept():
        pictures = run.method.pictures(batch, run.config.telemetry.sample_clips)
    run.telemetry.show(run.state.step, pictures)


def _validate(run: Run[B]) -> Best | None:
    """Measure; where that makes this step the best of the run, what its checkpoint is to say of it."""
    run.watchdog.expect(f"validation after step {run.state.step}", run.config.watchdog.pause_budget)
    with run.telemetry.pace.aside(), generators_kept():
        values = run.method.validate(run.stop_request.stop_requested)
    if values is None:
        return None
    run.telemetry.validated(run.state.step, values)
    return run.checkpoints.retention.better(run.state.step, values)


def _roll_back(run: Run[B], spike: Spike) -> None:
    """Weights, optimizers and random generators of the last good checkpoint; the data go on from where they are now."""
    config, state, spiked_at = run.config, run.state, run.state.step
    run.watchdog.expect(f"going back after step {spiked_at}", config.watchdog.pause_budget)
    directory = run.checkpoints.before(spike.good)
    if directory is None:
        raise SpikingRun(
            f"{config.rollback.term} spikes after step {spike.good} ({spike.values}, median before "
            f"{spike.median:.4g}), and there is no checkpoint from before it to go back to; lower checkpoint.every or "
            "raise checkpoint.keep for the next run, or set rollback.factor=0"
        )
    good_step = step_of(directory.name)
    assert good_step is not None
    # A run that is killed between this line and `record` goes on from the good checkpoint, and spikes again.
    run.checkpoints.set_back(good_step)
    state.step, position_then = run.checkpoints.load(directory, run.method)
    positions = position_then, state.position
    decision = decide(spike, config.rollback, state.step, spiked_at, positions, run.loader.identity)
    run.rollbacks.record(decision)
    run.history.begin(state.step, changes_since(directory, config))
    run.telemetry.rolled_back(state.step, decision.text, asdict(decision))
