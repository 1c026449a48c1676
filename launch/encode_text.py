"""Encode the captions of a dataset of latents to token embeddings with Ray; the same command again goes on.

    python launch/encode_text.py --encoder minilm --latents data/latents --output data/texts

The encoder is a directory of Hugging Face with its tokenizer. Each distinct caption is encoded once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from data_pipeline.store.counted import counted
from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from launch.inputs import encoder, local_path, shards
from launch.option_types import path, place
from launch.outputs import check_output_folder
from trainer.config.loader import load_config
from trainer.config.text_encoding import TextEncodingConfig

if TYPE_CHECKING:
    from trainer.texts.encoding import TextsResult


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where units failed, and as docs/commands.md says."""
    parser = _parser()
    arguments = parse_overrides(parser, argv)
    if arguments.status:
        if arguments.output is None:
            parser.error("--status needs --output, the dataset to look at")
        from data_pipeline.dataset.finalize import status
        from data_pipeline.store.open import open_store

        print(status(open_store(arguments.output)))
        return DONE
    named = {key: getattr(arguments, key) for key in ("encoder", "latents", "output")}
    named["run.address"] = arguments.address
    words = [f"{key}={value}" for key, value in named.items() if value is not None]
    config = load_config(TextEncodingConfig, arguments.config, [*arguments.overrides, *words])
    folder = local_path(config.output)
    if folder is not None:
        inputs = {"encoder": encoder(config.encoder), "latents": shards(config.latents)}
        check_output_folder(folder, inputs, option="output=", empty=False)
    if find_spec("transformers") is None:
        raise ValueError("text encoders are those of transformers, which is missing: pip install -e '.[text]'")

    from trainer.texts.encoding import encode_texts

    try:
        result = encode_texts(config)
    except RuntimeError as error:
        complain(parser.prog, error)
        return FAILED
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("run the same command again to go on: finished units are kept") from error
    return report(config, result)


def _parser() -> Parser:
    parser = config_parser(TextEncodingConfig, __file__, __doc__)
    parser.add_argument("--encoder", type=path, help="directory of a Hugging Face encoder; sets encoder=")
    parser.add_argument(
        "--latents", type=place, help="the dataset of latents: folder or s3://bucket/prefix; sets latents="
    )
    parser.add_argument("--output", type=place, help="folder or s3://bucket/prefix; sets output=")
    parser.add_argument("--address", help="Ray cluster to use, `auto` for the running one; sets run.address=")
    parser.add_argument("--status", action="store_true", help="say how far the dataset at --output is, and do nothing")
    return parser


def report(config: TextEncodingConfig, result: TextsResult) -> int:
    """Say how it ended."""
    if result.dataset is None:
        for unit, why in sorted(result.failed.items())[:20]:
            print(f"unit {unit:06d} failed: {why}", file=sys.stderr)
        complain(
            "launch/encode_text.py",
            f"{len(result.failed)} of {counted(result.plan.units, 'unit')} failed; run the same command again to "
            "encode what is not committed",
        )
        return FAILED
    print(result.dataset.ledger.table(result.dataset.kind))
    described = result.dataset.texts
    assert described is not None
    print(f"tokens    {described.tokens} of width {described.width}, at most {described.max_tokens} a caption")
    if described.truncated:
        print(f"cut       {counted(described.truncated, 'caption')} to {described.max_tokens} tokens (text.max_tokens)")
    if len(described.devices) > 1:
        kinds = ", ".join(f"{name} ({counted(units, 'unit')})" for name, units in described.devices.items())
        print(f"devices   {kinds}: embeddings of two kinds may differ in their last bits (docs/latents.md)")
    if result.encoded:
        print(f"speed     {result.texts_per_s:.2f} texts/s over {counted(result.encoded, 'unit')} in this run")
    print(f"texts     {config.output}")
    print(f"check it  python launch/verify_shards.py --shards {config.output} --source {config.latents}")
    return DONE


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray is shut down by now; as in launch/build_shards.py, its native threads must not turn a complete dataset into a
    # failure when Python exits.
    os._exit(ended)
