"""What scripts print and end with that have run all units of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from data_pipeline.store.counted import counted
from launch.exit_status import DONE, FAILED, complain

if TYPE_CHECKING:
    from data_pipeline.build.dataset_job import DatasetResult
    from data_pipeline.dataset.description import DatasetFile


def status_of(script: str, result: DatasetResult, dataset: DatasetFile, *, new: bool, remedy: str = "") -> int:
    """The exit status of a run that has left no unit: `FAILED`, with a line, where nothing was stored.

    Args:
        script: the script's name in messages.
        new: whether this run did all units of what was planned last, and not only tried rows again.
        remedy: a sentence of what to do, without the dot.
    """
    run, made = result.run, result.plan.kind.name
    if dataset.samples and not (new and run.done and not run.items):
        return DONE
    say = f"no {made.removesuffix('s')} was committed; the table says why"
    complain(script, f"{say}, {remedy}" if remedy else say)
    return FAILED


def say_speed(result: DatasetResult) -> None:
    """Print the speed of this run, where it has done anything."""
    run, kind = result.run, result.plan.kind
    if run.done:
        print(f"speed     {run.items_per_s:.2f} {kind.name}/s over {counted(run.done, 'unit')} in this run")


def say_encoded(
    result: DatasetResult, dataset: DatasetFile, devices: Mapping[str, int], output: str, source: str
) -> None:
    """Print what a run that has encoded something ends with: on what, how fast, where it is, and how it is checked.

    Args:
        devices: kind of device -> units that it has encoded, over all runs.
        output: of the dataset.
        source: the dataset that was encoded.
    """
    made = result.plan.kind.name
    if len(devices) > 1:
        kinds = ", ".join(f"{name} ({counted(units, 'unit')})" for name, units in devices.items())
        print(f"devices   {kinds}: {made} of two kinds may differ in their last bits (docs/latents.md)")
    say_speed(result)
    say_retry(dataset)
    print(f"{made:<9} {output}")
    print(f"check it  python launch/verify_shards.py --shards {output} --source {source}")


def say_retry(dataset: DatasetFile) -> None:
    """Name the option that tries again what could not be read, where there is such a thing."""
    if count := sum(dataset.ledger.quarantined.values()):
        print(f"retry     {count} of the {dataset.kind.rows} could not be read; --retry-quarantined tries them again")
