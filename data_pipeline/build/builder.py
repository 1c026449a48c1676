"""Builds a dataset of clips: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.dataset_job import DatasetResult, begin, finish, missing_units, run_missing
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.planner import make_plan
from data_pipeline.build.ray_cluster import signals_raise
from data_pipeline.build.worker import BuildJob, run_unit
from data_pipeline.cut.cutter import ENCODER_VERSION
from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.near_duplicates import drop_near_duplicates
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store

TASK_NAME = "build-unit"
"""The name of a unit's task in Ray; a worker's process title is `ray::build-unit` while it builds a unit."""


def build(config: ShardsConfig, *, append: bool = False, retry_quarantined: bool = False) -> DatasetResult:
    """Plan, build what is missing, finalize.

    Args:
        append: when the output holds other manifests, add this one as new units.
        retry_quarantined: when the output is complete, try the source's quarantined rows again, as new units.
    Raises:
        ValueError: the input is wrong; no work was started.
        KeyboardInterrupt: SIGINT or SIGTERM came. What is committed stays.
    """
    store = open_store(config.output, config.sources.retries)
    with signals_raise():
        job, missing = plan_build(config, ENCODER_VERSION, store, append=append, retry_quarantined=retry_quarantined)
        run = run_missing(job, missing, run_unit, TASK_NAME)
        return finish_build(job, run, store)


def plan_build(
    config: ShardsConfig, encoder: str, store: Store, *, append: bool = False, retry_quarantined: bool = False
) -> tuple[BuildJob, list[int]]:
    """What is to be done: the job, and the units that are not committed yet.

    Args:
        encoder: version of what clips are encoded with; all units of a dataset have the same.
        store: of `config.output`.
        append, retry_quarantined: as for `build`.
    Raises:
        ValueError: the input is wrong, or the output was begun with other settings.
    """
    planned = make_plan(config, encoder, store, append=append)
    dataset = Dataset(store, planned.plan)
    missing = missing_units(dataset)
    if retry_quarantined and not missing:
        dataset = Dataset(store, plan_retry(dataset, planned.parent).plan)
        missing = missing_units(dataset)
    _refuse_other_parents(dataset.plan, missing, planned.parent)
    begin(dataset, missing, fresh=planned.fresh)
    return BuildJob(config, dataset.plan, planned.base, taken_down(store)), missing


def finish_build(job: BuildJob, run: UnitsRun, store: Store) -> DatasetResult:
    """Finalize the dataset, unless units are missing."""
    distance = job.config.near_duplicates
    return finish(job, run, store, finalize if distance is None else partial(_without_near_duplicates, distance))


def _refuse_other_parents(plan: Plan, missing: Iterable[int], parent: int) -> None:
    """Units can only be built from the manifest they were planned from: relative videos belong to its folder."""
    for unit in missing:
        segment = plan.segment_of(unit)
        if segment.parent != parent:
            raise ValueError(
                f"unit {unit} is not committed and belongs to the manifest {segment.name!r}; run the build with it as "
                "the source first"
            )


def _without_near_duplicates(distance: int, dataset: Dataset, scratch: str | None) -> DatasetFile:
    duplicates = drop_near_duplicates(dataset, distance, scratch=scratch)
    print(f"near-duplicates: {duplicates.dropped} of {duplicates.clips} clips dropped", flush=True)
    assert duplicates.description is not None
    return duplicates.description
