"""A job whose units make a dataset, whatever it consists of: which units are missing, run them, describe the dataset.

The steps are `missing_units`, `begin`, `run_missing` and `finish`. What a kind of dataset does before and between the
steps stands with it: `builder.py` for clips, and for latents and texts, which `run_dataset_job` makes,
`trainer/latents/encoding.py` and `trainer/texts/encoding.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from data_pipeline.build.config import DatasetRunConfig
from data_pipeline.build.driver import UnitsRun, run_units
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_cluster import refuse_before_planning, refuse_missing_gpus, signals_raise
from data_pipeline.build.scratch import make_scratch
from data_pipeline.build.unit_body import Body
from data_pipeline.dataset import unfinished
from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.finalize import described, finalize
from data_pipeline.dataset.index_file import DamagedIndex, checked_index
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.presence import shard_faults
from data_pipeline.dataset.units import committed_units, unit_index_key, unit_key, unit_of_shard, units_with_index
from data_pipeline.store.base import Store
from data_pipeline.store.counted import counted
from data_pipeline.store.open import open_store


class Settings(Protocol):
    """Settings of a job."""

    @property
    def run(self) -> DatasetRunConfig:
        """How the units are run."""


class DatasetJob(Protocol):
    """What a worker is told of its work."""

    @property
    def config(self) -> Settings:
        """The settings of the command."""

    @property
    def plan(self) -> Plan:
        """The plan of the dataset."""


Job = TypeVar("Job", bound=DatasetJob)
Finalize = Callable[[Dataset, str | None], DatasetFile]
"""Writes the index and the description of a dataset; the second argument is the folder for temporary files."""


@dataclass(frozen=True)
class DatasetResult:
    """How a run ended.

    Args:
        plan: of the dataset.
        run: the units of this run.
        dataset: dataset.json; None while units are missing.
        left: which units this run leaves to other commands, and these commands; "" where it leaves none.
    """

    plan: Plan
    run: UnitsRun
    dataset: DatasetFile | None
    left: str = ""


def run_dataset_job(
    run: DatasetRunConfig,
    output: str,
    plan: Callable[[Store], tuple[Job, list[int]]],
    body: Body[Job],
    name: str,
    *,
    gpus: int,
) -> DatasetResult:
    """Plan, run what is missing, finalize.

    Args:
        run: how the units are run.
        output: of the dataset.
        plan: makes or continues the plan on the store of the output; it returns the job and its missing units.
        body, name: see `run_missing`.
        gpus: of this machine.
    Raises:
        ValueError: the input is wrong, or the output was begun with other settings; no work was started.
        OSError: a store fails.
        RuntimeError: Ray or its actors do not start.
        KeyboardInterrupt: SIGINT or SIGTERM came. What is committed stays.
    """
    store = open_store(output)
    refuse_before_planning(run, run.resources)
    refuse_missing_gpus(run, run.resources, gpus)
    make_scratch(run.scratch)
    with signals_raise():
        job, missing = plan(store)
        return finish(job, run_missing(job, missing, body, name), store)


def missing_units(dataset: Dataset) -> list[int]:
    """The units of the plan that are not committed, in ascending order."""
    return unfinished.missing_units(dataset.plan, committed_units(dataset.store))


def begin(dataset: Dataset, missing: list[int], *, fresh: bool, others: int = 0) -> None:
    """Say what is planned, refuse damage, and withdraw a description that speaks of units that have been deleted.

    Args:
        missing: units that this run has to do.
        fresh: whether this run has made the plan, or added to it.
        others: how many units this run leaves to other commands.
    Raises:
        ValueError: the dataset was complete, and files of it are gone or have another size; or the store has units
            that the plan does not have.
    """
    plan = dataset.plan
    _refuse_units_beyond(dataset)
    done = plan.units - len(missing) - others
    print(
        f"{'planned' if fresh else 'resuming'}: {plan.rows} {plan.kind.rows} in {plan.units} units"
        + (f", {done} already committed" if done else ""),
        flush=True,
    )
    description = described(dataset)
    if description is None:
        return
    _refuse_damage(dataset, description, missing)
    if missing:
        withdraw(dataset.store)


def _refuse_units_beyond(dataset: Dataset) -> None:
    """Refuse committed units that the plan does not have, because the last step would remove their shards.

    A dataset of several commands has them when its plan was lost and only the first command has planned it anew.

    Raises: ValueError.
    """
    plan, store = dataset.plan, dataset.store
    beyond = sorted(unit for unit in committed_units(store) if unit >= plan.units)
    if beyond:
        raise ValueError(
            f"{store.uri()} has {counted(len(beyond), 'committed unit')} more than the {plan.units} of its plan.json "
            f"(first: {unit_key(beyond[0])}); restore plan.json from a copy, or run the further commands again that "
            "made the dataset, in their order (--append, --retry-quarantined); where their samples may be lost, "
            "delete these records"
        )


def _refuse_damage(dataset: Dataset, description: DatasetFile, missing: list[int]) -> None:
    """Refuse committed units of which a shard or the index is missing, or a shard has another size. Nothing is read.

    A unit whose commit record has been deleted is not asked, because it is made again.
    """
    store = dataset.store
    faults = {unit_of_shard(shard): fault for shard, fault in shard_faults(store, description).items()}
    indexed = units_with_index(store)
    for unit in range(dataset.plan.units):
        if unit not in indexed:
            faults.setdefault(unit, f"{unit_index_key(unit)} is missing")
    for unit in missing:
        faults.pop(unit, None)
    if faults:
        first = min(faults)
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(
            f"{store.uri()} is damaged: {faults[first]} (unit {first}){more}; launch/verify_shards.py --shards "
            f"{store.uri()} names all damage. Delete {unit_key(first)} there, and those of the other damaged units; "
            "then the same command makes these units again"
        )


def run_missing(job: Job, missing: list[int], body: Body[Job], name: str) -> UnitsRun:
    """Run the missing units on Ray.

    Args:
        body: what does one unit.
        name: of a unit's task in Ray.
    Raises: as `run_units`.
    """
    plan, run = job.plan, job.config.run
    rows = sum(map(plan.rows_in, missing))
    progress = Progress(plan.units, plan.units - len(missing), rows, run.progress_s, items_name=plan.kind.name)
    return run_units(job, missing, body, config=run, resources=run.resources, progress=progress, name=name)


def finish(job: DatasetJob, run: UnitsRun, store: Store, finalized: Finalize = finalize) -> DatasetResult:
    """Describe the dataset, unless units are missing.

    Index and description are written anew where this run has done units, and where the index is missing or damaged.

    Args:
        store: of the dataset.
        finalized: writes the index and the description.
    """
    if run.failed or run.stopped:
        return DatasetResult(job.plan, run, None)
    dataset, scratch = Dataset(store, job.plan), job.config.run.scratch or None
    description = None if run.done else _kept(dataset, scratch)
    return DatasetResult(job.plan, run, description or finalized(dataset, scratch))


def _kept(dataset: Dataset, scratch: str | None) -> DatasetFile | None:
    """The description of a complete dataset; None where there is none, or where its index has to be made anew."""
    description = described(dataset)
    if description is None:
        return None
    try:
        with checked_index(dataset.store, description, scratch):
            return description
    except DamagedIndex as error:
        fault = str(error).partition(",")[0]
        print(f"{fault}; it is made anew from the commit records of the units", flush=True)
        return None
