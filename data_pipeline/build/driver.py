"""Runs work units on Ray, whatever a unit is: a bounded number at a time, each until it is done or fails too often.

The driver knows a unit by its number. A body (`unit_body.py`) does the unit's work in another process, writes the
result to the store by itself and returns a small report, so that Ray carries numbers and reports, never data.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.util import metrics

from data_pipeline.build.config import DriverConfig, UnitResources
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_cluster import ray_cluster, signals_raise
from data_pipeline.build.ray_workers import LOST, Actors, Reference, Tasks, Workers, hosts, reason
from data_pipeline.build.unit_body import Body, GivenBack, Report

Job = TypeVar("Job")
_GIVE_BACKS = 3
"""Units that a machine gives back in a row before it counts as unable to work, and tries of one unit on a machine."""


@dataclass
class UnitsRun:
    """How the units of one run ended."""

    done: int = 0  # units
    items: int = 0  # of these units
    items_per_s: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)  # unit -> why it was given up
    stopped: str = ""  # the trouble of all machines that ended the run; "" where there was none


def run_units(
    job: Job,
    units: Iterable[int],
    body: Body[Job],
    *,
    config: DriverConfig,
    resources: UnitResources,
    progress: Progress,
    name: str,
) -> UnitsRun:
    """Run a body over units on Ray.

    A unit whose body raises is tried `config.attempts` times in all. A unit whose process or node dies is given to
    another one and counts as failed after the tenth time. Each unit is counted once, however often it was begun.

    A unit whose body raises `GivenBack` is given back and tried again, on another machine if there is one. When
    every machine has given back three units and none was done meanwhile, the run stops, because no unit is at fault.

    Args:
        job: what the body needs to know, with no credentials in it; pickled once for all units.
        units: numbers of the units, each once.
        body: a function, or a class whose instances are kept in actors; importable by the workers.
        config: where and how. `in_flight` is the largest number of units given to Ray at once, and with a class of
            actors. With 0, Ray gets twice the tasks that the cluster has room for at the moment, or as many actors as
            it has room for. So an autoscaler adds nodes for actors only when `in_flight` is set.
        resources: what Ray sets aside for one unit, and with a class for one actor.
        progress: shows the run, and names the items in Ray's metrics.
        name: the task's name in `ray list tasks` and on the dashboard; a worker's process title is `ray::NAME`.
    Returns:
        The account of the run. It lacks the units that were left when `config.max_failed` was reached.
    Raises:
        ValueError: no such cluster, a unit that never fits on it, or a unit that is listed twice.
        KeyboardInterrupt: SIGINT or SIGTERM came. It is `Interrupted`, or Ray's own where Ray was waiting.
        RuntimeError: Ray or the actors do not start.
    """
    waiting, run = deque(units), UnitsRun()
    if len(set(waiting)) < len(waiting):
        twice = min(unit for unit, count in Counter(waiting).items() if count > 1)
        raise ValueError(f"unit {twice} is listed more than once; list each unit once")
    if not waiting:
        return run
    with signals_raise(), ray_cluster(config, resources):
        kind: Callable[..., Workers] = Actors if isinstance(body, type) else Tasks
        workers = kind(job, body, resources, config.in_flight, name)
        try:
            _run_all(workers, waiting, config, resources, progress, run)
        finally:
            workers.end()
    return run


def _run_all(
    workers: Workers,
    waiting: deque[int],
    config: DriverConfig,
    resources: UnitResources,
    progress: Progress,
    run: UnitsRun,
) -> None:
    """Keep the workers busy until no unit is left, or too many have failed."""
    running: dict[Reference, int] = {}
    # The tries are counted here and not by Ray, which does not tell a unit that fails from a node that went away.
    tries: Counter[tuple[int, str]] = Counter()
    counters = _Counters(progress.items_name)
    give_backs = _GiveBacks()
    progress.show(now=True)
    while (waiting or running) and len(run.failed) < config.max_failed and not run.stopped:
        workers.prepare(len(waiting))
        while waiting and workers.has_room():
            unit = waiting.popleft()
            running[workers.start(unit)] = unit
        for reference in workers.wait():
            unit = running.pop(reference)
            try:
                report = workers.report(reference)
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else None
                if isinstance(cause, GivenBack):
                    waiting.append(unit)
                    left, machines = {*waiting, *running.values()}, hosts(resources)
                    run.stopped = run.stopped or give_backs.add(unit, cause, left, machines)
                    continue
                kind = "failed" if isinstance(error, RayTaskError) else "lost"
                tries[unit, kind] += 1
                if tries[unit, kind] < (config.attempts if kind == "failed" else LOST):
                    waiting.append(unit)
                else:
                    run.failed[unit] = reason(error)
                continue
            give_backs.clear()
            run.done += 1
            run.items += report.items
            progress.add(report.rows, report.items)
            counters.add(report)
        progress.show()
    progress.end()
    run.items_per_s = progress.items_per_s


class _GiveBacks:
    """Counts the units that machines gave back, to tell one machine's trouble from the trouble of all."""

    def __init__(self) -> None:
        self._units: defaultdict[str, set[int]] = defaultdict(set)  # machine -> units since the last one that was done
        self._times: Counter[int] = Counter()  # unit -> give-backs

    def add(self, unit: int, trouble: GivenBack, left: set[int], machines: set[str]) -> str:
        """Count one unit.

        Args:
            left: units that are not done, this one included.
            machines: names of the machines of the cluster that can do a unit.
        Returns:
            The reason to stop the run, or "" to go on.
        """
        self._units[trouble.host].add(unit)
        self._times[unit] += 1
        everywhere = bool(machines) and all(len(self._units[machine]) >= _GIVE_BACKS for machine in machines)
        nothing_else = all(self._times[other] >= _GIVE_BACKS * max(1, len(machines)) for other in left)
        return str(trouble) if everywhere or nothing_else else ""

    def clear(self) -> None:
        """A unit was done, so some machine works."""
        self._units.clear()


class _Counters:
    """Progress as Ray metrics: a Prometheus that scrapes the cluster sees them."""

    def __init__(self, items_name: str) -> None:
        self._units = metrics.Counter("vidtwin_units", "Work units committed by this run.")
        self._rows = metrics.Counter("vidtwin_rows", "Source rows accounted for by this run.", tag_keys=("fate",))
        self._items = metrics.Counter(f"vidtwin_{items_name}", f"{items_name.capitalize()} committed by this run.")
        self._bytes = metrics.Counter("vidtwin_shard_bytes", "Bytes of shards committed by this run.")

    def add(self, report: Report) -> None:
        """Count one committed unit. A Ray counter refuses to be moved by zero."""
        self._units.inc(1)
        for fate, rows in report.fates.items():
            if rows:
                self._rows.inc(rows, tags={"fate": fate})
        if report.items:
            self._items.inc(report.items)
        if report.bytes:
            self._bytes.inc(report.bytes)
