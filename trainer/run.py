"""One process of a run from beginning to end: join the others, prepare, train (`loop.py`), export, leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from data_pipeline.store.base import StoreError
from trainer import distributed
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.exports import MODEL
from trainer.checkpoint.fork import check_is_fork, find_parent, position_of_fork
from trainer.checkpoint.history import History, changes_since
from trainer.checkpoint.writer import Unwritten
from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.engine.device import own_device
from trainer.faults import flight_recorder
from trainer.faults.full_disk import ToldElsewhere, forget, of_a_full_disk, tell, was_told
from trainer.faults.launcher import Launcher, ends_with
from trainer.faults.output_lock import InUse, Unwritable, held
from trainer.faults.rollback import Rollbacks
from trainer.faults.shared_memory import SharedMemoryInUse, check_shared_memory
from trainer.faults.stop_request import StopRequest, StopRequested
from trainer.faults.time_limit import TimeLimit
from trainer.faults.watchdog import Watchdog
from trainer.join.contents import check_same_contents, of_data, of_file
from trainer.join.equality import equal_texts, on_all
from trainer.join.guest import Absent
from trainer.join.launch import NotOneRun
from trainer.loop import Run, Stopped, TrainState, train
from trainer.method import B, Loader, Method, MethodBuilder
from trainer.telemetry.profiler import ProfileWindow
from trainer.telemetry.recorder import Telemetry

C = TypeVar("C", bound=RunConfig)


class Unready(RuntimeError):
    """A run that cannot start or go on now, and may be able to later: a store does not answer, the output is in use."""


class Refused(ValueError):
    """A run that cannot start: the message names the setting or file and the remedy."""


Report = Callable[[BaseException], None]


def _silent(error: BaseException) -> None:
    pass


def run(
    config: C,
    builder: Callable[[C, Ranks], MethodBuilder[B]],
    launcher: Launcher | None = None,
    report: Report = _silent,
    clock: Callable[[], float] = time.monotonic,
) -> Stopped:
    """Set one process of a run up, train, and clean up. Every rank calls it with the same configuration.

    An error that it raises has broken the connections to the other ranks off, so the process must end then.

    Args:
        config: the method's own configuration.
        builder: makes the method's builder, which opens the data; the process has joined the other ranks by then.
        launcher: the `deepspeed` command, if there is one; its end asks for a stop as a signal does.
        report: told of an error of this rank before anything that might wait for the other ranks.
        clock: seconds, by which `max_hours` is kept.
    Raises:
        Refused: a setting that cannot work on this device, number of ranks or dataset, or checkpoints of another run.
        Unready: a store does not answer, at the start or later, or another run uses the output.
        Failed: training gave up.
    """
    output, time_limit = Path(config.output), TimeLimit(config, clock)
    try:
        device = own_device(config.device)
        config.check_device(device.type)
    except ValueError as error:
        raise Refused(str(error)) from error
    with flight_recorder.switched_on(output / "hangs", enabled=device.type == "cuda"):
        return _run(config, builder, launcher, report, _join(config, device, launcher), time_limit)


def _run(
    config: C,
    builder: Callable[[C, Ranks], MethodBuilder[B]],
    launcher: Launcher | None,
    report: Report,
    ranks: Ranks,
    time_limit: TimeLimit,
) -> Stopped:
    """Prepare, train and leave; the process has joined the other ranks."""
    output = Path(config.output)
    watching = config.watchdog.step_budget > 0
    ask_for_more = partial(flight_recorder.request_dump, ranks.rank)
    try:
        with (
            held(output, ranks, partial(print, flush=True)),
            Watchdog(output / "hangs", ranks.rank, enabled=watching, ask_for_more=ask_for_more) as watchdog,
            StopRequest(ranks.control, launcher, time_limit) as stop_request,
            Telemetry(config, ranks) as telemetry,
            ProfileWindow(config.profile, output / "profile", ranks.rank) as profile,
            _leaving(ranks, config.output, report) as closing,
        ):
            watchdog.expect("the start", config.watchdog.start_budget)
            for line in distributed.described(ranks, config.precision.value):
                telemetry.say(line)
            try:
                prepared = _prepare(
                    config,
                    ranks,
                    builder,
                    watchdog=watchdog,
                    stop_request=stop_request,
                    time_limit=time_limit,
                    telemetry=telemetry,
                    profile=profile,
                )
            except StopRequested:
                telemetry.say(_untrained(stop_request))
                return Stopped.PREEMPTED
            except ValueError as error:
                raise Refused(str(error)) from error
            except (StoreError, SharedMemoryInUse) as error:
                raise Unready(str(error)) from error
            closing.callback(prepared.loader.close)
            closing.callback(prepared.checkpoints.close)
            return _conclude(prepared, _train(prepared))
    except Unwritable as error:
        raise Refused(str(error)) from error
    except InUse as error:
        raise Unready(str(error)) from error


def _join(config: RunConfig, device: torch.device, launcher: Launcher | None) -> Ranks:
    """Meet the other ranks. The end of the `deepspeed` command ends the waiting.

    Raises:
        Refused: the ranks differ in what must be equal, or another run has their port.
        Unready: ranks are missing.
    """
    try:
        with ends_with(launcher):
            return distributed.start(config.collective_timeout, device, output=config.output, equal=equal_texts(config))
    except NotOneRun as error:
        raise Refused(str(error)) from error
    except Absent as error:
        raise Unready(str(error)) from error


@contextmanager
def _leaving(ranks: Ranks, output: str, report: Report) -> Iterator[ExitStack]:
    """Leave the process group at the end. The watchdog must still watch then, because leaving may hang too.

    What is put on the stack is closed before that, and after an error only once the error has been told.
    """
    closing = ExitStack()
    forget(output)
    try:
        yield closing
    except BaseException as error:
        told = _told_elsewhere(error, output)
        try:
            if not told:
                report(error)
        finally:
            try:
                closing.close()
            finally:
                distributed.abort(ranks)
        if told:
            raise ToldElsewhere("another rank has met a full disk") from error
        raise
    closing.close()
    distributed.stop()


def _told_elsewhere(error: BaseException, output: str) -> bool:
    """Whether another rank has told of the full disk that this error is about, or that has led to it."""
    if isinstance(error, Unwritten) or of_a_full_disk(error):
        return not tell(output)
    return isinstance(error, RuntimeError) and was_told(output)


def _prepare(
    config: C,
    ranks: Ranks,
    builder: Callable[[C, Ranks], MethodBuilder[B]],
    *,
    watchdog: Watchdog,
    stop_request: StopRequest,
    time_limit: TimeLimit,
    telemetry: Telemetry,
    profile: ProfileWindow,
) -> Run[B]:
    """Everything that can refuse a run, the quick checks first; `StopRequested` before each part that takes minutes."""
    stop_request.check()
    building = on_all(lambda: builder(config, ranks), ranks.gather)
    check_shared_memory(ranks, building.loader.shared_bytes, free=False)
    checkpoints = Checkpoints(config, ranks, telemetry.say if ranks.is_main else print)
    newest = checkpoints.newest()
    if newest is not None:
        check_is_fork(config, newest)
    parent = find_parent(config, ranks) if newest is None and config.fork_from else None
    if parent is not None:
        building.check_parent(parent.state["order"])
    origin = parent.directory if parent is not None else newest
    _check_same_data(config, ranks, building.loader, fresh=origin is None)
    grown = checkpoints.check(newest, building.loader) if newest is not None else ""
    stop_request.check()
    method = building.build(origin is None)
    stop_request.check()
    rollbacks = Rollbacks(config.rollback, Path(config.output), ranks, method.terms, method.facts.smaller_steps)
    state = _loaded_state(config, checkpoints, origin, method)
    checkpoints.remove_leftovers()
    if newest is not None:
        checkpoints.abandon_later(state.step)
    check_shared_memory(ranks, building.loader.shared_bytes, free=True)
    fork = parent.facts if parent is not None else checkpoints.forked_from
    changes = changes_since(newest, config) if newest is not None else {}
    history = History(config, ranks.is_main, telemetry.say)
    history.begin(state.step, changes, fork if fork is not None and fork["step"] == state.step else None)
    if state.step < config.steps:  # a finished run's files stay as they are
        telemetry.begin(state.step, method.facts, resumed=origin)
        for line in building.describe_data():
            telemetry.note(state.step, "data", line)
    state.position, order = rollbacks.begin(state.step, state.position)
    if order is not None:
        grown = building.loader.continue_from(order, state.position)
    if grown and state.step < config.steps:
        telemetry.note(state.step, "data", grown)
    if parent is not None:
        state.position, line = position_of_fork(parent, state.position, building.loader)
        telemetry.note(state.step, "fork", line)
        checkpoints.begin_fork(parent, state.position, method, building.loader)
    return Run(
        config=config,
        state=state,
        method=method,
        loader=building.loader,
        checkpoints=checkpoints,
        history=history,
        rollbacks=rollbacks,
        watchdog=watchdog,
        stop_request=stop_request,
        time_limit=time_limit,
        telemetry=telemetry,
        profile=profile,
    )


def _loaded_state(config: RunConfig, checkpoints: Checkpoints, origin: Path | None, method: Method[B]) -> TrainState:
    """Where a run begins: at step 0, or where the checkpoint `origin` was saved, whose state the method has then."""
    state = TrainState()
    if origin is not None:
        state.step, state.position = checkpoints.load(origin, method)
    if state.step > config.steps:
        raise ValueError(
            f"steps={config.steps} is less than the {state.step} steps that {origin} has done; set steps to that or "
            "more, or choose another output"
        )
    return state


def _check_same_data(config: RunConfig, ranks: Ranks, loader: Loader[B], *, fresh: bool) -> None:
    """Refuse ranks that read other data or begin from other weights, whatever the paths to them are.

    Raises:
        NotOneRun: something differs; raised on every rank.
    """
    key, path = config.data_of_node
    files = {key: of_file(path) for key, path in config.files_of_nodes(fresh).items()}
    check_same_contents({key: of_data(path, loader.identity)} | files, ranks.gather)


def _train(run: Run[B]) -> Stopped:
    """Train, and end the loader.

    Raises:
        Unready: a store does not answer.
    """
    try:
        outcome = train(run)
    except StoreError as error:
        raise Unready(
            f"training ended after step {run.state.step}: {error}. When that is mended, the same command "
            "goes on from the newest checkpoint"
        ) from error
    run.checkpoints.close()
    run.loader.close()
    return outcome


def _conclude(run: Run[B], outcome: Stopped) -> Stopped:
    """Export a finished run, say how the run ended, and wait for the last upload.

    Returns:
        `outcome`, or PREEMPTED where the last upload is left to the next start.
    """
    telemetry, model = run.telemetry, Path(run.config.output) / MODEL
    run.watchdog.expect("the end", run.config.watchdog.pause_budget)
    if outcome is Stopped.FINISHED:
        if not run.checkpoints.ranks.broadcast(model.is_dir()):  # a finished run that is started again has it
            run.method.export(model, run.checkpoints.provenance(run.state.step))
        telemetry.say(f"finished {run.state.step} steps; the model is in {model}")
    elif run.state.step == 0:
        telemetry.say(_untrained(run.stop_request))
    else:
        telemetry.say(
            f"stopped by {run.stop_request.reason} after step {run.state.step}, which is saved; "
            "the same command goes on from there"
        )
    unfinished = run.checkpoints.finish(run.stop_request.stop_requested)
    telemetry.scalars(run.state.step, run.checkpoints.take_metrics())
    return Stopped.PREEMPTED if unfinished else outcome


def _untrained(stop_request: StopRequest) -> str:
    return (
        f"stopped by {stop_request.reason} before training began: nothing was trained since the last checkpoint, "
        "and nothing is saved; the same command starts again"
    )
