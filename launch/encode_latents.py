"""Encode a dataset of clips into latents with Ray; run the same command again to go on, or when the clips changed.

python launch/encode_latents.py --model runs/base/model --shards data/shards --output data/latents
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.store.counted import counted
from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from launch.inputs import local_path, model, shards
from launch.option_types import place
from launch.outputs import check_output_folder
from trainer.config.encoding import EncodingConfig
from trainer.config.loader import load_config

if TYPE_CHECKING:
    from trainer.latents.encoding import EncodingResult


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
    named = {key: getattr(arguments, key) for key in ("model", "shards", "output")}
    named["run.address"] = arguments.address
    words = [f"{key}={value}" for key, value in named.items() if value is not None]
    config = load_config(EncodingConfig, arguments.config, [*arguments.overrides, *words])
    folder = local_path(config.output)
    if folder is not None:
        inputs = {"model": model(config.model), "shards": shards(config.shards)}
        check_output_folder(folder, inputs, option="output=", empty=False)

    from trainer.latents.encoding import encode

    try:
        result = encode(config, retry_quarantined=arguments.retry_quarantined)
    except RuntimeError as error:
        complain(parser.prog, error)
        return FAILED
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("run the same command again to go on: finished units are kept") from error
    return report(config, result)


def _parser() -> Parser:
    parser = config_parser(EncodingConfig, __file__, __doc__)
    parser.add_argument("--model", type=place, help="model directory, or its s3:// address; sets model=")
    parser.add_argument("--shards", type=place, help="the dataset of clips: folder or s3://bucket/prefix; sets shards=")
    parser.add_argument("--output", type=place, help="folder or s3://bucket/prefix; sets output=")
    parser.add_argument("--address", help="Ray cluster to use, `auto` for the running one; sets run.address=")
    parser.add_argument("--retry-quarantined", action="store_true", help="try the clips again that could not be read")
    parser.add_argument("--status", action="store_true", help="say how far the dataset at --output is, and do nothing")
    return parser


def report(config: EncodingConfig, result: EncodingResult) -> int:
    """Say how it ended."""
    if result.dataset is None:
        for unit, why in sorted(result.failed.items())[:20]:
            print(f"unit {unit:06d} failed: {why}", file=sys.stderr)
        complain(
            "launch/encode_latents.py",
            f"{len(result.failed)} of {counted(result.plan.units, 'unit')} failed; run the same command again to "
            "encode what is not committed",
        )
        return FAILED
    print(result.dataset.ledger.table(result.dataset.kind))
    described = result.dataset.latents
    if described is not None and len(described.devices) > 1:
        kinds = ", ".join(f"{name} ({counted(units, 'unit')})" for name, units in described.devices.items())
        print(f"devices   {kinds}: latents of two kinds may differ in their last bits (docs/latents.md)")
    if result.encoded:
        print(f"speed     {result.latents_per_s:.2f} latents/s over {counted(result.encoded, 'unit')} in this run")
    print(f"latents   {config.output}")
    print(f"check it  python launch/verify_shards.py --shards {config.output} --source {config.shards}")
    return DONE


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray is shut down by now; as in launch/build_shards.py, its native threads must not turn a complete dataset into a
    # failure when Python exits.
    os._exit(ended)
