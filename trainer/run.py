"""One process of a run from beginning to end: join the other ranks, prepare, train, export, leave.

To prepare is in `prepare.py`, to train in `loop.py`.
"""

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
from trainer.checkpoint.exports import MODEL
from trainer.checkpoint.writer import Unwritten
from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.engine.device import own_device
from trainer.faults import flight_recorder
from trainer.faults.full_disk import ToldElsewhere, forget, of_a_full_disk, tell, was_told
from trainer.faults.launcher import Launcher, ends_with
from trainer.faults.output_lock import InUse, Unwritable, held
from trainer.faults.shared_memory import SharedMemoryInUse
from trainer.faults.stop_request import StopRequest, StopRequested
from trainer.faults.time_limit import TimeLimit
from trainer.faults.watchdog import Watchdog
from trainer.join.equality import equal_texts
from trainer.join.guest import Absent
from trainer.join.launch import NotOneRun
from trainer.loop import Run, Stopped, train
from trainer.method import B, MethodBuilder
from trainer.prepare import prepare
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
                prepared = prepare(
                    config,
                    ranks,
                    partial(builder, config, ranks),
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
    telemetry, model, budget = run.telemetry, Path(run.config.output) / MODEL, run.config.watchdog.pause_budget
    run.watchdog.expect("the end", budget)
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
    # The budget is for one look at the upload, because checkpoint.upload_wait bounds the wait and may be longer.
    looks = partial(run.watchdog.expect, "the last upload", budget)
    unfinished = run.checkpoints.finish(run.stop_request.stop_requested, looks)
    telemetry.scalars(run.state.step, run.checkpoints.take_metrics())
    return Stopped.PREEMPTED if unfinished else outcome


def _untrained(stop_request: StopRequest) -> str:
    return (
        f"stopped by {stop_request.reason} before training began: nothing was trained since the last checkpoint, "
        "and nothing is saved; the same command starts again"
    )
