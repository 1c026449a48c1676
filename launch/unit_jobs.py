"""What scripts share that run the units of a dataset on Ray: their options, `--status`, failures, and the way out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from data_pipeline.store.counted import counted
from launch.command_line import Parser
from launch.exit_status import FAILED, complain

if TYPE_CHECKING:
    from data_pipeline.build.dataset_job import DatasetResult
    from data_pipeline.dataset.description import DatasetFile


def add_unit_options(parser: Parser, retried: str = "") -> None:
    """The options `--address` and `--status`, and `--retry-quarantined` where there is something to try again.

    Args:
        retried: what that is, for `--help`.
    """
    parser.add_argument("--address", help="Ray cluster to use, `auto` for the running one; sets run.address=")
    if retried:
        parser.add_argument("--retry-quarantined", action="store_true", help=f"try {retried} again")
    parser.add_argument("--status", action="store_true", help="say how far the dataset at --output is, and do nothing")


def option_words(arguments: argparse.Namespace, *options: str) -> list[str]:
    """The `key=value` words that these options and `--address` stand for, where they are given."""
    named = {**{key: getattr(arguments, key) for key in options}, "run.address": arguments.address}
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def say_status(parser: Parser, output: str | None) -> None:
    """Print how far the dataset is, and which command goes on with it. An `output` of None is refused.

    Args:
        parser: of the script, whose name is that of the script that made the dataset.
        output: what `--output` names.
    Raises:
        ValueError: nothing was planned there, or another script makes datasets of this kind.
    """
    if output is None:
        parser.error("--status needs --output, the dataset to look at")
    from data_pipeline.dataset.finalize import status
    from data_pipeline.dataset.plan import Dataset
    from data_pipeline.dataset.unfinished import next_step
    from data_pipeline.store.open import open_store

    store = open_store(output)
    said, dataset = status(store), Dataset.open(store)
    kind = dataset.plan.kind
    if kind.made_by != parser.prog:
        raise ValueError(
            f"--output {store.uri()} is a dataset of {kind.name}, which {kind.made_by} makes; how far it is says: "
            f"python {kind.made_by} --output {shlex.quote(store.uri())} --status"
        )
    print(said)
    if step := next_step(dataset):
        print(step)


def run_job(script: str, job: Callable[[], DatasetResult], report: Callable[[DatasetResult, DatasetFile], int]) -> int:
    """Run a job and say how it ended.

    Args:
        script: the script's name in messages.
        job: runs the units; RuntimeError where Ray does not start.
        report: prints what has been made, once no unit is missing, and returns the exit status.
    Returns:
        The exit status: that of `report`, or `FAILED` where Ray did not start, units failed, no machine could work, or
        units are left to other commands.
    """
    try:
        result = job()
    except RuntimeError as error:
        complain(script, error)
        return FAILED
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("run the same command again to go on: finished units are kept") from error
    if result.dataset is not None:
        return report(result, result.dataset)
    if result.run.stopped:
        complain(
            script,
            f"stopped, because no machine can work and no row is at fault: {result.run.stopped}; mend this and run the "
            "same command again, finished units are kept",
        )
        return FAILED
    if result.left:
        complain(script, result.left)
        return FAILED
    for unit, why in sorted(result.run.failed.items())[:20]:
        print(f"unit {unit:06d} failed: {why}", file=sys.stderr)
    complain(
        script,
        f"{len(result.run.failed)} of {counted(result.plan.units, 'unit')} failed; run the same command again to do "
        "what is not committed",
    )
    return FAILED


def leave(status: int) -> NoReturn:
    """End the process with this status at once.

    Ray is shut down by now; its native threads have been seen to crash Python's own exit, which would turn a dataset
    that is complete into a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
