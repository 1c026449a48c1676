"""Builds a dataset on Ray. Ray carries unit numbers and small reports; clips go from worker to store directly."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray.exceptions import RayError, RayTaskError
from ray.util import metrics

from data_pipeline.cut.cutter import ENCODER_VERSION
from data_pipeline.finalize import committed_units, finalize, read_dataset, withdraw
from data_pipeline.grow import plan_retry, taken_down
from data_pipeline.near_duplicates import drop_near_duplicates
from data_pipeline.plan import Plan
from data_pipeline.planner import make_plan
from data_pipeline.progress import Progress
from data_pipeline.shards_config import RunConfig, ShardsConfig
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store
from data_pipeline.unit import UnitReport
from data_pipeline.worker import Job, run_unit

Body = Callable[[Job, int], UnitReport]

TASK_NAME = "build-unit"
"""What `ray list tasks`, the dashboard and, while it works, the worker's process title (`ray::build-unit`) show."""
_OBJECT_STORE_BYTES = 100 << 20
"""Ray's shared memory, when the cluster is started here: reports are tiny and clips never go through it."""
_UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")
"""What a node of Ray's starts, and a cluster for one build does without."""
_LOST = 10
"""Times a unit may go down with its worker or node before it counts as failed: that is rarely the unit's fault."""


@dataclass
class BuildResult:
    """How a run ended."""

    plan: Plan
    dataset: dict[str, Any] | None  # dataset.json; None while units are missing
    failed: dict[int, str] = field(default_factory=dict)  # unit -> why it was left uncommitted
    built: int = 0  # units this run committed
    clips: int = 0  # clips this run committed
    clips_per_s: float = 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Everything committed stays; the same command goes on."""


def build(
    config: ShardsConfig,
    *,
    body: Body = run_unit,
    encoder: str = ENCODER_VERSION,
    append: bool = False,
    retry_quarantined: bool = False,
) -> BuildResult:
    """Plan, build what is missing, finalize.

    Args:
        body: what a worker does with one unit; importable by the workers.
        encoder: version of what `body` encodes with.
        append: when the output holds other manifests, add this one as new units.
        retry_quarantined: when the output is complete, try the source's quarantined rows again, as new units.
    Raises:
        ValueError: wrong input, before any work starts.
        Interrupted: by a signal.
    """
    store = open_store(config.output, attempts=config.sources.attempts, timeout_s=config.sources.timeout_s)
    with _signals_raise():
        planned = make_plan(config, encoder, store, append=append)
        plan = planned.plan
        done = committed_units(store)
        if retry_quarantined and plan.units == len(done):
            plan = plan_retry(store, plan, planned.parent)
        result = BuildResult(plan, None)
        missing = deque(unit for unit in range(plan.units) if unit not in done)
        _refuse_other_parents(plan, missing, planned.parent)
        print(
            f"{'planned' if planned.fresh else 'resuming'}: {plan.rows} rows in {plan.units} units"
            + (f", {plan.units - len(missing)} already committed" if plan.units > len(missing) else ""),
            flush=True,
        )
        if missing:
            if _described(store, plan):
                withdraw(store)  # units of it have gone
            with _cluster(config):
                _run(Job(config, plan, planned.base, taken_down(store)), missing, body, result)
        if not result.failed:
            result.dataset = _finished(config, plan, untouched=not result.built)
    return result


def _refuse_other_parents(plan: Plan, missing: Iterable[int], parent: int) -> None:
    """Units can only be built from the manifest they were planned from: relative videos belong to its folder."""
    for unit in missing:
        segment = plan.segment_of(unit)
        if segment.parent != parent:
            raise ValueError(
                f"unit {unit} is not committed and belongs to the manifest {segment.name!r}; run the build with it as "
                "the source first"
            )


def _finished(config: ShardsConfig, plan: Plan, *, untouched: bool) -> dict[str, Any]:
    """The dataset's description, written anew unless nothing happened since it was."""
    store = open_store(config.output, attempts=config.sources.attempts, timeout_s=config.sources.timeout_s)
    if untouched and (dataset := _described(store, plan)):
        return dataset
    scratch = config.run.scratch or None
    if config.near_duplicates is None:
        return finalize(store, plan, scratch)
    found = drop_near_duplicates(store, plan, config.near_duplicates, scratch=scratch)
    print(f"near-duplicates: {found.dropped} of {found.clips} clips dropped", flush=True)
    return found.dataset


def _described(store: Store, plan: Plan) -> dict[str, Any] | None:
    """`dataset.json` when it is there and of this plan."""
    try:
        dataset = read_dataset(store)
    except FileNotFoundError:
        return None
    return dataset if dataset.get("plan") == plan.digest else None


def _run(job: Job, missing: deque[int], body: Body, result: BuildResult) -> None:
    """Keep a bounded number of units in Ray's hands until none is missing."""
    run = job.config.run
    plan = job.plan
    progress = Progress(plan.units, plan.units - len(missing), sum(map(plan.rows_in, missing)), run.progress_s)
    # Retries are counted here: a unit that fails is told from a node that went away, and both are bounded.
    # One name for all: Ray's driver counts tasks by name for ever, 7 kB for each name, a gigabyte for 150 000 units.
    task = ray.remote(num_cpus=run.unit_cpus, memory=run.unit_memory_bytes or None, max_retries=0, max_calls=0)(
        body
    ).options(name=TASK_NAME)
    shared = ray.put(job)
    running: dict[Any, int] = {}
    tries: Counter[tuple[int, str]] = Counter()
    counters = _Counters()
    progress.show(now=True)
    while (missing or running) and len(result.failed) < run.max_failed:
        limit = run.in_flight or max(8, 2 * int(ray.cluster_resources().get("CPU", 1) / run.unit_cpus))
        while missing and len(running) < limit:
            unit = missing.popleft()
            running[task.remote(shared, unit)] = unit
        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        for reference in ready:
            unit = running.pop(reference)
            try:
                report = ray.get(reference)
            except RayError as error:
                kind = "failed" if isinstance(error, RayTaskError) else "lost"
                tries[unit, kind] += 1
                if tries[unit, kind] < (run.attempts if kind == "failed" else _LOST):
                    missing.append(unit)
                else:
                    result.failed[unit] = _reason(error)
                continue
            result.built += 1
            result.clips += report.clips
            progress.add(report.rows, report.clips)
            counters.add(report)
        progress.show()
    progress.end()
    result.clips_per_s = progress.clips_per_s


class _Counters:
    """Progress as Ray metrics: what a Prometheus that scrapes the cluster sees of this run."""

    def __init__(self) -> None:
        self.units = metrics.Counter("vidtwin_units", "Work units committed by this run.")
        self.rows = metrics.Counter("vidtwin_rows", "Source rows accounted for by this run.", tag_keys=("fate",))
        self.clips = metrics.Counter("vidtwin_clips", "Clips committed by this run.")
        self.bytes = metrics.Counter("vidtwin_shard_bytes", "Bytes of shards committed by this run.")

    def add(self, report: UnitReport) -> None:
        """Count one committed unit. A Ray counter refuses to be moved by zero."""
        self.units.inc(1)
        for fate, rows in report.fates.items():
            self.rows.inc(rows, tags={"fate": fate})
        if report.clips:
            self.clips.inc(report.clips)
            self.bytes.inc(report.bytes)


def _reason(error: RayError) -> str:
    """The last line of what went wrong on the worker."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0] if text else ''}"


@contextmanager
def _cluster(config: ShardsConfig) -> Iterator[None]:
    """Ray for the time of a run: the cluster that was named, or one of our own; a connection that is there is used."""
    if ray.is_initialized():
        yield
        return
    address = config.run.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster at run.address={address!r}: {error}; leave it empty to start one here"
            ) from error
    else:
        start_local_cluster(config.run.cpus)
        _refuse_units_that_never_fit(config.run)
    _install(_raise_interrupted)  # ray.init puts its own SIGTERM handler in place
    try:
        yield
    finally:
        _install(signal.SIG_IGN)  # the shutdown takes seconds; a second Ctrl-C must not leave half a cluster
        ray.shutdown()
        _install(_raise_interrupted)


def _refuse_units_that_never_fit(run: RunConfig) -> None:
    """Ray would wait for a larger node for ever. Raises: ValueError."""
    there = ray.cluster_resources()
    for key, wanted, name in (("cpus", run.unit_cpus, "CPU"), ("memory_bytes", run.unit_memory_bytes, "memory")):
        if wanted > there.get(name, 0.0):
            ray.shutdown()
            raise ValueError(f"run.unit_{key}={wanted:g} is more than the {there.get(name, 0.0):g} that Ray has here")


def start_local_cluster(cpus: int = 0) -> None:
    """A Ray for this process, on the loopback address and without dashboard; `cpus` 0 takes all cores.

    Raises: RuntimeError when the machine is too busy for Ray to come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to third parties
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about GPUs we do not ask for
    for attempt in range(3):
        try:
            with _on_loopback(), _few_processes():
                ray.init(
                    address="local",
                    num_cpus=cpus or None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    object_store_memory=_OBJECT_STORE_BYTES,
                )
            return
        except Exception as error:  # Ray gives its processes 30 s and raises nothing narrower
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            print(f"Ray did not start in time (attempt {attempt + 1} of 3): the machine is busy", flush=True)
    raise RuntimeError("Ray did not start; is the machine out of memory or cores? run the same command again")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray take 127.0.0.1 for this machine's address, as it does on macOS: who reaches its ports can run code."""
    before = ray_constants.ENABLE_RAY_CLUSTER  # Ray has no public setting for this
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _few_processes() -> Iterator[None]:
    """Have Ray start without what one build has no use for, which halves what its start costs.

    That is its autoscaler, its web server, which it starts for no pages as well, and the reader of the workers' logs,
    whose lines nobody would show. Ray has no public setting for any of them.
    """
    before = {name: getattr(Node, name) for name in _UNUSED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda self, *words, **more: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def _install(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` inside the block; the handlers of before come back after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _install(_raise_interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
