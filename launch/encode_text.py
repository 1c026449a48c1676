"""Encode the captions of a dataset of latents to token embeddings with Ray; the same command again goes on.

    python launch/encode_text.py --encoder minilm --latents data/latents --output data/texts

The encoder is a directory of Hugging Face with its tokenizer. Each distinct caption is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from data_pipeline.store.counted import counted
from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, ends_with_status
from launch.inputs import encoder, shards
from launch.option_types import path, place
from launch.outputs import check_output_dataset
from launch.unit_jobs import add_unit_options, leave, option_words, run_job, say_status
from launch.unit_reports import say_encoded, status_of
from trainer.config.loader import load_config
from trainer.config.text_encoding import TextEncodingConfig

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
    words = option_words(arguments, "encoder", "latents", "output")
    config = load_config(TextEncodingConfig, arguments.config, [*arguments.overrides, *words])
    check_output_dataset(config.output, {"encoder": encoder(config.encoder), "latents": shards(config.latents)})
    if find_spec("transformers") is None:
        raise ValueError("text encoders are those of transformers, which is missing: pip install -e '.[text]'")

    from trainer.texts.encoding import encode_texts

    return run_job(parser.prog, partial(encode_texts, config), partial(report, config))


def _parser() -> Parser:
    parser = config_parser(TextEncodingConfig, __file__, __doc__)
    parser.add_argument("--encoder", type=path, help="directory of a Hugging Face encoder; sets encoder=")
    parser.add_argument(
        "--latents", type=place, help="the dataset of latents: folder or s3://bucket/prefix; sets latents="
    )
    parser.add_argument("--output", type=place, help="folder or s3://bucket/prefix; sets output=")
    add_unit_options(parser)
    return parser


def report(config: TextEncodingConfig, result: DatasetResult, dataset: DatasetFile) -> int:
    """Print what has been made, and how it can be checked; returns the exit status."""
    print(dataset.ledger.table(dataset.kind))
    described = dataset.texts
    assert described is not None
    print(f"tokens    {described.tokens} of width {described.width}, at most {described.max_tokens} a caption")
    if described.truncated:
        print(f"cut       {counted(described.truncated, 'caption')} to {described.max_tokens} tokens (text.max_tokens)")
    say_encoded(result, dataset, described.devices, config.output, config.latents)
    return status_of(
        "launch/encode_text.py", result, dataset, new=any(segment.rows for segment in result.plan.segments[-1:])
    )


if __name__ == "__main__":
    leave(main())
