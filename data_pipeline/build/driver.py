"""Builds a dataset on Ray. Ray carries unit numbers and small reports; clips go from worker to store directly."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import metrics

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_cluster import ray_cluster, signals_raise
from data_pipeline.build.unit import UnitReport
from data_pipeline.build.worker import Job, run_unit
from data_pipeline.cut.cutter import ENCODER_VERSION
from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.finalize import described, finalize
from data_pipeline.dataset.near_duplicates import drop_near_duplicates
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.open import open_store

Body = Callable[[Job, int], UnitReport]

TASK_NAME = "build-unit"
"""What `ray list tasks`, the dashboard and, while it works, the worker's process title (`ray::build-unit`) show."""
_LOST = 10
"""Times a unit may go down with its worker or node before it counts as failed: that is rarely the unit's fault."""


@dataclass
class BuildResult:
    """How a run ended."""

    plan: Plan
    dataset: DatasetFile | None  # dataset.json; None while units are missing
    failed: dict[int, str] = field(default_factory=dict)  # unit -> why it was left uncommitted
    built: int = 0  # units this run committed
    clips: int = 0  # clips this run committed
    clips_per_s: float = 0.0


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
    store = open_store(config.output, config.sources.retries)
    with signals_raise():
        planned = make_plan(config, encoder, store, append=append)
        plan = planned.plan
        done = committed_units(store)
        if retry_quarantined and plan.units == len(done):
            plan = plan_retry(Dataset(store, plan), planned.parent).plan
        result = BuildResult(plan, None)
        missing = deque(unit for unit in range(plan.units) if unit not in done)
        _refuse_other_parents(plan, missing, planned.parent)
        print(
            f"{'planned' if planned.fresh else 'resuming'}: {plan.rows} rows in {plan.units} units"
            + (f", {plan.units - len(missing)} already committed" if plan.units > len(missing) else ""),
            flush=True,
        )
        if missing:
            if described(Dataset(store, plan)):
                withdraw(store)  # units of it have gone
            with ray_cluster(config):
                _run(Job(config, plan, planned.base, taken_down(store)), missing, body, result)
        if not result.failed:
            result.dataset = _finished(config, Dataset(store, plan), untouched=not result.built)
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


def _finished(config: ShardsConfig, dataset: Dataset, *, untouched: bool) -> DatasetFile:
    """The dataset's description, written anew unless nothing happened since it was."""
    if untouched and (description := described(dataset)):
        return description
    scratch = config.run.scratch or None
    if config.near_duplicates is None:
        return finalize(dataset, scratch)
    done = drop_near_duplicates(dataset, config.near_duplicates, scratch=scratch)
    print(f"near-duplicates: {done.dropped} of {done.clips} clips dropped", flush=True)
    assert done.description is not None
    return done.description


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
