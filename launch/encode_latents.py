"""Encode a dataset of clips into latents with Ray; run the same command again to go on, or when the clips changed.

python launch/encode_latents.py --model runs/base/model --shards data/shards --output data/latents
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, ends_with_status
from launch.inputs import model, shards
from launch.option_types import place
from launch.outputs import check_output_dataset
from launch.unit_jobs import add_unit_options, leave, option_words, run_job, say_status
from launch.unit_reports import say_encoded, status_of
from trainer.config.encoding import EncodingConfig
from trainer.config.loader import load_config

if TYPE_CHECKING:
    from data_pipeline.build.dataset_job import DatasetResult
    from data_pipeline.dataset.description import DatasetFile


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where units failed, and as docs/commands.md says."""
    parser = _parser()
    arguments = parse_overrides(parser, argv)
    if arguments.status:
        say_status(parser, arguments.output)
        return DONE
    words = option_words(arguments, "model", "shards", "output")
    config = load_config(EncodingConfig, arguments.config, [*arguments.overrides, *words])
    check_output_dataset(config.output, {"model": model(config.model), "shards": shards(config.shards)})

    from trainer.latents.encoding import encode

    def job() -> DatasetResult:
        return encode(config, retry_quarantined=arguments.retry_quarantined)

    return run_job(parser.prog, job, partial(report, config, retry=arguments.retry_quarantined))


def _parser() -> Parser:
    parser = config_parser(EncodingConfig, __file__, __doc__)
    parser.add_argument("--model", type=place, help="model directory, or its s3:// address; sets model=")
    parser.add_argument("--shards", type=place, help="the dataset of clips: folder or s3://bucket/prefix; sets shards=")
    parser.add_argument("--output", type=place, help="folder or s3://bucket/prefix; sets output=")
    add_unit_options(parser, "the clips that could not be read")
    return parser


def report(config: EncodingConfig, result: DatasetResult, dataset: DatasetFile, *, retry: bool = False) -> int:
    """Print what has been made, and how it can be checked; returns the exit status.

    Args:
        retry: whether clips that could not be read were tried again.
    """
    print(dataset.ledger.table(dataset.kind))
    described = dataset.latents
    assert described is not None
    say_encoded(result, dataset, described.devices, config.output, config.shards)
    return status_of(
        "launch/encode_latents.py",
        result,
        dataset,
        new=not retry and any(segment.rows for segment in result.plan.segments[-1:]),
        remedy="and launch/verify_shards.py looks at the clips. --retry-quarantined tries those again that could not "
        "be read",
    )


if __name__ == "__main__":
    leave(main())
