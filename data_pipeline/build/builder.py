"""Builds a dataset of clips: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.dataset_job import DatasetResult, begin, finish, missing_units, run_missing
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.from_plan import planned_already
from data_pipeline.build.planner import make_plan
from data_pipeline.build.ray_cluster import refuse_before_planning, signals_raise
from data_pipeline.build.worker import BuildJob, run_unit
from data_pipeline.cut.cutter import ENCODER_VERSION
from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.near_duplicates import drop_near_duplicates
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.dataset.unfinished import commands
from data_pipeline.store.base import Store
from data_pipeline.store.counted import counted
from data_pipeline.store.open import absolute_place, open_store

TASK_NAME = "build-unit"
"""The name of a unit's task in Ray; a worker's process title is `ray::build-unit` while it builds a unit."""


def build(
    config: ShardsConfig, *, append: bool = False, retry_quarantined: bool = False, from_plan: bool = False
) -> DatasetResult:
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
        run = run_missing(job, missing, run_unit, TASK_NAME)
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
    dataset = Dataset(store, planned.plan)
    missing = missing_units(dataset)
    if retry_quarantined and not missing:
        dataset = Dataset(store, plan_retry(dataset, planned.parent, has_folder=bool(planned.base)).plan)
        missing = missing_units(dataset)
    own = _of_manifest(dataset, missing, planned.parent)
    begin(dataset, own, fresh=planned.fresh, others=len(missing) - len(own))
    config = replace(config, output=absolute_place(config.output))  # a worker of a cluster has another current folder
    return BuildJob(config, dataset.plan, planned.base, removed, planned.folders), own


def finish_build(job: BuildJob, run: UnitsRun, store: Store) -> DatasetResult:
    """Finalize the dataset, unless units failed or are of another manifest."""
    dataset = Dataset(store, job.plan)
    left = [] if run.failed or run.stopped else missing_units(dataset)
    if left:
        words = f"{counted(len(left), 'unit')} of other manifests left; {' ; then: '.join(commands(dataset, left))}"
        return DatasetResult(job.plan, run, None, words)
    distance = job.config.near_duplicates
    return finish(job, run, store, finalize if distance is None else partial(_without_near_duplicates, distance))


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


def _without_near_duplicates(distance: int, dataset: Dataset, scratch: str | None) -> DatasetFile:
    duplicates = drop_near_duplicates(dataset, distance, scratch=scratch)
    print(f"near-duplicates: {duplicates.dropped} of {duplicates.clips} clips dropped", flush=True)
    assert duplicates.description is not None
    return duplicates.description
