"""One process of a run from beginning to end: join the others, prepare, train (`loop.py`), export, leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data_pipeline.read.loader import ClipLoader
from data_pipeline.store.base import StoreError
from data_pipeline.store.files import atomic_file
from trainer import distributed
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.config.loader import to_yaml
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.evaluation.validation import Validation
from trainer.faults.launcher import Launcher, ends_with
from trainer.faults.output_lock import InUse, Unwritable, held
from trainer.faults.rollback import Rollbacks
from trainer.faults.stop_request import Preemption, Told
from trainer.faults.watchdog import Watchdog
from trainer.loop import Method, Parts, Stopped, TrainState, Watchers, train
from trainer.telemetry.profiler import ProfileWindow
from trainer.telemetry.recorder import Telemetry

# From the configuration, the ranks, and whether the run begins here; if not, `load` follows.
BuildMethod = Callable[[TrainConfig, Ranks, bool], Method]


class Unready(RuntimeError):
    """A run that cannot start or go on now, and may be able to later: a store does not answer, the output is in use."""


class Refused(ValueError):
    """A run that cannot start: the message names the setting or file and the remedy."""


def run(config: TrainConfig, build_method: BuildMethod, launcher: Launcher | None = None) -> Stopped:
    """Set one process of a run up, train, and clean up. Every rank calls it with the same configuration.

    The end of the launcher, if there is one, asks for a stop as a signal does.

    Raises:
        Refused: a setting that cannot work on this device, number of ranks or dataset, or checkpoints of another run.
        Unready: a store does not answer, at the start or later, or another run uses the output.
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
            except Told:
                watch.telemetry.say(_untrained(watch))
                return Stopped.PREEMPTED
            except ValueError as error:
                raise Refused(str(error)) from error
            except StoreError as error:
                raise Unready(str(error)) from error
            try:
                outcome = train(config, parts)
            except StoreError as error:
                raise Unready(
                    f"training ended after step {parts.state.step}: {error}. When that is mended, the same command "
                    "goes on from the newest checkpoint"
                ) from error
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
    """Everything that can refuse a run, the quick checks first; `Told` before each part that may take minutes."""
    telemetry = watch.telemetry
    watch.preemption.check()
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
    watch.preemption.check()
    method = build_method(config, ranks, newest is None)
    watch.preemption.check()
    rollbacks = Rollbacks(config.rollback, Path(config.output), ranks, method.terms)
    state = TrainState()
    if newest is not None:
        state.step, state.position = checkpoints.load(newest, method)
    if state.step > config.steps:
        raise ValueError(
            f"steps={config.steps} is less than the {state.step} steps that {newest} has done; set steps to that or "
            "more, or choose another output"
        )
    checkpoints.remove_leftovers()
    if ranks.is_main:
        with atomic_file(Path(config.output) / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config))
    telemetry.begin(state.step, method.facts, resumed=newest)
    state.position = rollbacks.begin(state.step, state.position)
    return Parts(state, method, loader, checkpoints, rollbacks, validation, watch)


def _conclude(config: TrainConfig, run: Parts, outcome: Stopped) -> Stopped:
    """Export a finished run, say how it ended, and see the last upload through; how it ended in the end."""
    telemetry, model = run.watch.telemetry, Path(config.output) / "model"
    if outcome is Stopped.FINISHED:
        run.method.export(model)
        telemetry.say(f"finished {run.state.step} steps; the model is in {model}")
    elif run.state.step == 0:
        telemetry.say(_untrained(run.watch))
    else:
        telemetry.say(
            f"stopped by {run.watch.preemption.reason} after step {run.state.step}, which is saved; "
            "the same command goes on from there"
        )
    unfinished = run.checkpoints.finish(run.watch.preemption.told)
    telemetry.scalars(run.state.step, run.checkpoints.take_metrics())
    return Stopped.PREEMPTED if unfinished else outcome


def _untrained(watch: Watchers) -> str:
    return (
        f"stopped by {watch.preemption.reason} before training began: nothing was trained since the last checkpoint, "
        "and nothing is saved; the same command starts again"
    )
