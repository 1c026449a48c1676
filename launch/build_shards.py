"""Build WebDataset shards from raw captioned videos with Ray; run the same command again to go on where it stopped.

python launch/build_shards.py --config configs/shards/base.yaml --source videos.csv --output data/shards
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from data_pipeline.build.config import ShardsConfig
from data_pipeline.store.open import open_store
from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, ends_with_status
from launch.outputs import check_output_dataset
from launch.unit_jobs import add_unit_options, leave, option_words, run_job, say_status
from launch.unit_reports import say_retry, say_speed, status_of
from trainer.config.loader import load_config

if TYPE_CHECKING:
    from data_pipeline.build.dataset_job import DatasetResult
    from data_pipeline.dataset.description import DatasetFile


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where units failed, and as docs/commands.md says."""
    parser = _parser()
    arguments = parse_overrides(parser, argv, several=("--config", "--source"))
    if arguments.status:
        say_status(parser, arguments.output)
        return DONE
    source, *further = arguments.source or [None]
    words = option_words(arguments, "output") + ([f"source={source}"] if source is not None else [])
    words += [f"more_sources={json.dumps(further, ensure_ascii=False)}"] if further else []
    planned: list[str] = []
    if arguments.from_plan:
        if arguments.output is None or arguments.append:
            parser.error("--from-plan needs --output, the dataset to go on with, and no --append")
        from data_pipeline.build.from_plan import no_source, plan_words

        planned = [*plan_words(open_store(arguments.output)), f"source={no_source(arguments.output)}"]
    config = load_config(ShardsConfig, arguments.config, [*planned, *arguments.overrides, *words])
    more = {f"more_sources[{number}]": source for number, source in enumerate(config.more_sources)}
    check_output_dataset(config.output, {"source": config.source, **more})

    from data_pipeline.build.builder import build

    def job() -> DatasetResult:
        return build(
            config,
            append=arguments.append,
            retry_quarantined=arguments.retry_quarantined,
            from_plan=arguments.from_plan,
        )

    return run_job(parser.prog, job, partial(report, config))


def _parser() -> Parser:
    parser = config_parser(ShardsConfig, __file__, __doc__)
    parser.add_argument(
        "--source",
        action="append",
        metavar="SOURCE [SOURCE ...]",
        help="folders of videos, manifests (.csv .tsv .jsonl .parquet) or patterns; sets source= and more_sources=",
    )
    parser.add_argument("--output", help="folder or s3://bucket/prefix; sets output=")
    parser.add_argument("--append", action="store_true", help="add another manifest to a dataset, as new units")
    parser.add_argument(
        "--from-plan",
        action="store_true",
        help="build what is missing from the plan at --output, also when the manifest is lost; --source names the "
        "folder that relative videos start from",
    )
    add_unit_options(parser, "the quarantined rows of the source")
    return parser


def report(config: ShardsConfig, result: DatasetResult, dataset: DatasetFile) -> int:
    """Print what has been made, and how it can be checked; returns the exit status."""
    print(dataset.ledger.table())
    say_speed(result)
    say_retry(dataset)
    print(f"dataset   {config.output}")
    print(f"check it  python launch/verify_shards.py --shards {config.output}")
    last = result.plan.segments[-1]
    return status_of(
        "launch/build_shards.py",
        result,
        dataset,
        new=last.kind == "manifest" and result.run.done >= last.units,
        remedy="and launch/report_shards.py shows it. --retry-quarantined tries the quarantined rows again",
    )


if __name__ == "__main__":
    leave(main())
