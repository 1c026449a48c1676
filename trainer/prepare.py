"""What a process does between joining the other ranks and the first step; here a run is refused, by quick checks first.

Every rank makes every call. `StopRequest.check` comes before each part that takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.fork import Parent, check_is_fork, find_parent, position_of_fork
from trainer.checkpoint.history import History, changes_since
from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.faults.rollback import Rollbacks
from trainer.faults.shared_memory import check_shared_memory
from trainer.faults.stop_request import StopRequest
from trainer.faults.time_limit import TimeLimit
from trainer.faults.watchdog import Watchdog
from trainer.join.contents import check_same_contents, of_data, of_file
from trainer.join.equality import on_all
from trainer.loop import Run, TrainState
from trainer.method import B, Loader, Method, MethodBuilder
from trainer.telemetry.profiler import ProfileWindow
from trainer.telemetry.recorder import Telemetry


@dataclass(frozen=True)
class Origin:
    """The checkpoint from which a start goes on.

    Attributes:
        newest: the newest checkpoint of the run itself; None where the run has none.
        parent: the checkpoint of another run, from which a fork begins; None where the run goes on, or is no fork.
    """

    newest: Path | None
    parent: Parent | None

    @staticmethod
    def find(config: RunConfig, ranks: Ranks, checkpoints: Checkpoints) -> Origin:
        """The origin of this start.

        Raises:
            ValueError: no checkpoint can be used, or `fork_from` does not fit.
            StoreError: no disk holds a whole checkpoint, and the store does not answer.
        """
        newest = checkpoints.newest()
        if newest is not None:
            check_is_fork(config, newest)
        return Origin(newest, find_parent(config, ranks) if newest is None and config.fork_from else None)

    @property
    def directory(self) -> Path | None:
        """The checkpoint; None where the run begins at step 0."""
        return self.parent.directory if self.parent is not None else self.newest


def prepare(
    config: RunConfig,
    ranks: Ranks,
    open_data: Callable[[], MethodBuilder[B]],
    *,
    watchdog: Watchdog,
    stop_request: StopRequest,
    time_limit: TimeLimit,
    telemetry: Telemetry,
    profile: ProfileWindow,
) -> Run[B]:
    """A run that is ready for its next step.

    Args:
        open_data: opens the data, and gives the builder of the method.
        watchdog, stop_request, time_limit, telemetry, profile: go into the run.
    Raises:
        ValueError: a setting, a dataset or a checkpoint that cannot work; the message names it and the remedy.
        NotOneRun: the ranks read different data, or begin from different weights.
        StopRequested: a stop was asked for.
        StoreError: a store does not answer.
        SharedMemoryInUse: other processes use the shared memory that the batches need.
    """
    stop_request.check()
    builder = on_all(open_data, ranks.gather)
    loader = builder.loader
    check_shared_memory(ranks, loader.shared_bytes, free=False)
    checkpoints = Checkpoints(config, ranks, telemetry.say if ranks.is_main else print)
    origin = Origin.find(config, ranks, checkpoints)
    if origin.parent is not None:
        builder.check_parent(origin.parent.state["order"])
    _check_same_data(config, ranks, loader, fresh=origin.directory is None)
    grown = checkpoints.check(origin.newest, loader) if origin.newest is not None else ""
    stop_request.check()
    method = builder.build(origin.directory is None)
    stop_request.check()
    rollbacks = Rollbacks(config.rollback, Path(config.output), ranks, method.terms, method.facts.smaller_steps)
    state = _loaded_state(config, checkpoints, origin, method)
    checkpoints.remove_leftovers()
    if origin.newest is not None:
        checkpoints.abandon_later(state.step)
    run = Run(
        config=config,
        state=state,
        method=method,
        loader=loader,
        checkpoints=checkpoints,
        history=History(config, ranks.is_main, telemetry.say),
        rollbacks=rollbacks,
        watchdog=watchdog,
        stop_request=stop_request,
        time_limit=time_limit,
        telemetry=telemetry,
        profile=profile,
    )
    check_shared_memory(ranks, loader.shared_bytes, free=True)
    _begin_records(run, builder, origin)
    _begin_data(run, origin, grown)
    return run


def _check_same_data(config: RunConfig, ranks: Ranks, loader: Loader[B], *, fresh: bool) -> None:
    """Refuse ranks that read other data or begin from other weights, whatever the paths to them are.

    Raises:
        NotOneRun: something differs; raised on every rank.
    """
    key, path = config.data_of_node
    files = {key: of_file(path) for key, path in config.files_of_nodes(fresh).items()}
    check_same_contents({key: of_data(path, loader.identity)} | files, ranks.gather)


def _loaded_state(config: RunConfig, checkpoints: Checkpoints, origin: Origin, method: Method[B]) -> TrainState:
    """Where the run begins: at step 0, or where its origin was saved, whose state the method has then.

    Raises:
        ValueError: the origin has done more steps than `steps`.
    """
    state = TrainState()
    if origin.directory is not None:
        state.step, state.position = checkpoints.load(origin.directory, method)
    if state.step > config.steps:
        raise ValueError(
            f"steps={config.steps} is less than the {state.step} steps that {origin.directory} has done; set steps to "
            "that or more, or choose another output"
        )
    return state


def _begin_records(run: Run[B], builder: MethodBuilder[B], origin: Origin) -> None:
    """Open the run's history and files. The files of a finished run stay as they are."""
    step = run.state.step
    fork = origin.parent.facts if origin.parent is not None else run.checkpoints.forked_from
    changes = changes_since(origin.newest, run.config) if origin.newest is not None else {}
    run.history.begin(step, changes, fork if fork is not None and fork["step"] == step else None)
    if step < run.config.steps:
        run.telemetry.begin(step, run.method.facts, resumed=origin.directory)
        for line in builder.describe_data():
            run.telemetry.note(step, "data", line)


def _begin_data(run: Run[B], origin: Origin, grown: str) -> None:
    """Set the position in the data: after a rollback behind the stretch that is skipped, in a fork the parent's.

    Args:
        grown: says which samples were added to the dataset since the newest checkpoint; empty where none were.
    """
    state = run.state
    state.position, order = run.rollbacks.begin(state.step, state.position)
    if order is not None:
        grown = run.loader.continue_from(order, state.position)
    if grown and state.step < run.config.steps:
        run.telemetry.note(state.step, "data", grown)
    if origin.parent is not None:
        state.position, line = position_of_fork(origin.parent, state.position, run.loader)
        run.telemetry.note(state.step, "fork", line)
        run.checkpoints.begin_fork(origin.parent, state.position, run.method, run.loader)
