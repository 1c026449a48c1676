"""Build WebDataset shards from raw captioned videos with Ray; run the same command again to go on where it stopped.

python launch/build_shards.py --config configs/shards/base.yaml --source videos.csv --output data/shards
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.build.config import ShardsConfig
from data_pipeline.store.counted import counted
from data_pipeline.store.open import open_store
from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from launch.inputs import local_path
from launch.outputs import check_output_folder
from trainer.config.loader import load_config

if TYPE_CHECKING:
    from data_pipeline.build.builder import BuildResult


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where units failed, and as docs/commands.md says."""
    parser = _parser()
    arguments = parse_overrides(parser, argv)
    if arguments.status:
        if arguments.output is None:
            parser.error("--status needs --output, the dataset to look at")
        return show_status(arguments.output)
    named = {"source": arguments.source, "output": arguments.output, "run.address": arguments.address}
    words = [f"{key}={value}" for key, value in named.items() if value is not None]
    planned: list[str] = []
    if arguments.from_plan:
        if arguments.output is None or arguments.append:
            parser.error("--from-plan needs --output, the dataset to go on with, and no --append")
        from data_pipeline.build.from_plan import no_source, plan_words

        planned = [*plan_words(open_store(arguments.output)), f"source={no_source(arguments.output)}"]
    config = load_config(ShardsConfig, arguments.config, [*planned, *arguments.overrides, *words])
    folder = local_path(config.output)
    if folder is not None:
        check_output_folder(folder, {"source": config.source}, option="output=", empty=False)

    from data_pipeline.build.builder import build

    try:
        result = build(
            config,
            append=arguments.append,
            retry_quarantined=arguments.retry_quarantined,
            from_plan=arguments.from_plan,
        )
    except RuntimeError as error:
        complain(parser.prog, error)
        return FAILED
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("run the same command again to go on: finished units are kept") from error
    return report(config, result)


def _parser() -> Parser:
    parser = config_parser(ShardsConfig, __file__, __doc__)
    parser.add_argument("--source", help="folder of videos or manifest (.csv .tsv .jsonl .parquet); sets source=")
    parser.add_argument("--output", help="folder or s3://bucket/prefix; sets output=")
    parser.add_argument("--address", help="Ray cluster to use, `auto` for the running one; sets run.address=")
    parser.add_argument("--append", action="store_true", help="add another manifest to a dataset, as new units")
    parser.add_argument("--retry-quarantined", action="store_true", help="try the quarantined rows of the source again")
    parser.add_argument(
        "--from-plan",
        action="store_true",
        help="build what is missing from the plan at --output, also when the manifest is lost; --source names the "
        "folder that relative videos start from",
    )
    parser.add_argument("--status", action="store_true", help="say how far the dataset at --output is, and do nothing")
    return parser


def show_status(output: str) -> int:
    """Say how far a dataset is, and which command goes on with it."""
    from data_pipeline.dataset.finalize import status
    from data_pipeline.dataset.plan import Dataset
    from data_pipeline.dataset.unfinished import next_step

    store = open_store(output)
    print(status(store))
    if step := next_step(Dataset.open(store)):
        print(step)
    return DONE


def report(config: ShardsConfig, result: BuildResult) -> int:
    """Say how it ended."""

    if result.stopped:
        complain(
            "launch/build_shards.py",
            f"stopped, because no machine can work and no row is at fault: {result.stopped}; mend this and run the "
            "same command again, finished units are kept",
        )
        return FAILED
    if result.left:
        complain("launch/build_shards.py", f"{counted(result.left, 'unit')} of other manifests left; {result.go_on}")
        return FAILED
    if result.dataset is None:
        for unit, why in sorted(result.failed.items())[:20]:
            print(f"unit {unit:06d} failed: {why}", file=sys.stderr)
        complain(
            "launch/build_shards.py",
            f"{len(result.failed)} of {counted(result.plan.units, 'unit')} failed; run the same command again to build "
            "what is not committed",
        )
        return FAILED
    print(result.dataset.ledger.table())
    if result.built:
        print(f"speed     {result.clips_per_s:.2f} clips/s over {counted(result.built, 'unit')} in this run")
    print(f"dataset   {config.output}")
    print(f"check it  python launch/verify_shards.py --shards {config.output}")
    if not result.dataset.samples or (result.whole and result.built and not result.clips):
        complain(
            "launch/build_shards.py",
            "no clip was committed; the table says why, and launch/report_shards.py shows it. --retry-quarantined "
            "tries the quarantined rows again",
        )
        return FAILED
    return DONE


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray is shut down by now; its native threads have been seen to crash Python's own exit, which would turn a dataset
    # that is complete into a failure.
    os._exit(ended)
