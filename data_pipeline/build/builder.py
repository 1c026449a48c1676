"""Builds a dataset of clips: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.driver import UnitsRun, run_units
from data_pipeline.build.from_plan import planned_already
from data_pipeline.build.planner import make_plan
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_cluster import refuse_before_planning, signals_raise
from data_pipeline.build.worker import BuildJob, run_unit
from data_pipeline.cut.cutter import ENCODER_VERSION
from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.finalize import described, finalize
from data_pipeline.dataset.near_duplicates import drop_near_duplicates
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.dataset.unfinished import commands, missing_units
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store

TASK_NAME = "build-unit"
"""The name of a unit's task in Ray; a worker's process title is `ray::build-unit` while it builds a unit."""


@dataclass
class BuildResult:
    """How a run ended."""

    plan: Plan
    dataset: DatasetFile | None  # dataset.json; None while units are missing
    failed: dict[int, str] = field(default_factory=dict)  # unit -> why it was left uncommitted
    built: int = 0  # units this run committed
    clips: int = 0  # clips this run committed
    clips_per_s: float = 0.0
    left: int = 0  # units of other manifests that are not committed, which this run does not build
    go_on: str = ""  # the command that builds them
    stopped: str = ""  # the trouble of all machines that ended the run; "" where there was none
    whole: bool = False  # whether this run built a manifest from its first unit to its last one


def build(
    config: ShardsConfig, *, append: bool = False, retry_quarantined: bool = False, from_plan: bool = False
) -> BuildResult:
    """Plan, build what is missing, finalize.

    Args:
        from_plan: take the rows from the plan of the output instead of `config.source`, see `planned_already`.
        append: when the output holds other manifests, add this one as new units.
        retry_quarantined: when the output is complete, try the source's quarantined rows again, as new units.
    Raises:
        ValueError: the input is wrong; no work was started.
        KeyboardInterrupt: SIGINT or SIGTERM came. What is committed stays.
    """
    refuse_before_planning(config.run, config.run.resources)
    store = open_store(config.output, config.sources.retries)
    with signals_raise():
        job, missing = plan_build(
            config, ENCODER_VERSION, store, append=append, retry_quarantined=retry_quarantined, from_plan=from_plan
        )
        run = run_units(
            job,
            missing,
            run_unit,
            config=config.run,
            resources=config.run.resources,
            progress=progress_of(job, missing),
            name=TASK_NAME,
        )
        return finish_build(job, run, store)


def plan_build(
    config: ShardsConfig,
    encoder: str,
    store: Store,
    *,
    append: bool = False,
    retry_quarantined: bool = False,
    from_plan: bool = False,
) -> tuple[BuildJob, list[int]]:
    """What is to be done: the job, and the units of this run's manifest that are not committed yet.

    Args:
        encoder: version of what clips are encoded with; all units of a dataset have the same.
        store: of `config.output`.
        append, retry_quarantined, from_plan: as for `build`.
    Raises:
        ValueError: the input is wrong, or the output was begun with other settings. The output is as it was.
    """
    removed = taken_down(store)
    planned = planned_already(config, encoder, store) if from_plan else make_plan(config, encoder, store, append=append)
    plan = planned.plan
    committed = committed_units(store)
    if retry_quarantined and not missing_units(plan, committed):
        plan = plan_retry(Dataset(store, plan), planned.parent).plan
    missing = _of_manifest(Dataset(store, plan), missing_units(plan, committed), planned.parent)
    print(
        f"{'planned' if planned.fresh else 'resuming'}: {plan.rows} rows in {plan.units} units"
        + (f", {len(committed)} already committed" if committed else ""),
        flush=True,
    )
    if missing and described(Dataset(store, plan)):
        withdraw(store)  # the description speaks of units that have been deleted
    return BuildJob(config, plan, planned.base, removed), missing


def progress_of(job: BuildJob, missing: list[int]) -> Progress:
    """The progress line of a build with these units still to do."""
    plan = job.plan
    rows = sum(map(plan.rows_in, missing))
    return Progress(plan.units, plan.units - len(missing), rows, job.config.run.progress_s, items_name="clips")


def finish_build(job: BuildJob, run: UnitsRun, store: Store) -> BuildResult:
    """Finalize the dataset, unless units failed or are of another manifest."""
    result = BuildResult(job.plan, None, run.failed, run.done, run.items, run.items_per_s)
    last = job.plan.segments[-1]
    result.stopped, result.whole = run.stopped, last.kind == "manifest" and run.done >= last.units
    if run.failed or run.stopped:
        return result
    dataset = Dataset(store, job.plan)
    left = missing_units(job.plan, committed_units(store))
    if left:
        result.left, result.go_on = len(left), " ; then: ".join(commands(dataset, left))
    else:
        result.dataset = _finalized(job.config, dataset, untouched=not run.done)
    return result


def _of_manifest(dataset: Dataset, missing: list[int], parent: int) -> list[int]:
    """The missing units of one manifest: relative videos belong to its folder, so a run builds only its units.

    Raises:
        ValueError: all missing units are of other manifests.
    """
    own = [unit for unit in missing if dataset.plan.segment_of(unit).parent == parent]
    if missing and not own:
        name = dataset.plan.segments[dataset.plan.segment_of(missing[0]).parent].name
        raise ValueError(
            f"unit {missing[0]} is not committed and belongs to the manifest {name!r}; run the build with it as the "
            f"source first, or from the plan: {' ; then: '.join(commands(dataset, missing))}"
        )
    return own


def _finalized(config: ShardsConfig, dataset: Dataset, *, untouched: bool) -> DatasetFile:
    """The dataset's description, written anew unless nothing happened since it was."""
    if untouched and (description := described(dataset)):
        return description
    scratch = config.run.scratch or None
    if config.near_duplicates is None:
        return finalize(dataset, scratch)
    duplicates = drop_near_duplicates(dataset, config.near_duplicates, scratch=scratch)
    print(f"near-duplicates: {duplicates.dropped} of {duplicates.clips} clips dropped", flush=True)
    assert duplicates.description is not None
    return duplicates.description
