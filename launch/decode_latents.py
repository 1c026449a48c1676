"""Turn latents back into videos, one .mp4 for each: of a dataset, or of files that somebody else's model has made.

    python launch/decode_latents.py --model runs/base/model --latents data/latents --output seen --split val --limit 8
    python launch/decode_latents.py --model runs/base/model --latents made.safetensors --output seen --fps 8

A .safetensors file holds `structure` [d_S, n_q, h_S, w_S] and `dynamics` [d_D, f, w_D + h_D], or `dynamics_w` and
`dynamics_h` in its place, each with or without a batch axis.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction

from data_pipeline.outside.naming import naming
from data_pipeline.source.names import SPLITS
from data_pipeline.store.counted import counted
from launch.command_line import Parser, counter, script_parser
from launch.exit_status import DONE, ends_with_status
from launch.inputs import Input, model, shards, speaking_of
from launch.option_types import add_device, path, place, positive_number, whole_number
from launch.outputs import check_output_folder


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    files = [name for name in arguments.latents if name.endswith(".safetensors")]
    if files and arguments.fps is None:
        parser.error(f"--latents {files[0]} does not say how fast its frames follow each other; give --fps")
    if arguments.fps is not None and not 0.01 <= arguments.fps <= 1000:
        parser.error(f"--fps {arguments.fps:g} must lie between 0.01 and 1000")
    datasets = [name for name in arguments.latents if name not in files]
    if not datasets and (arguments.key or arguments.split):
        parser.error("--key and --split choose samples of a dataset, and --latents names none")
    if arguments.statistics and not files:
        parser.error("--statistics is for .safetensors files; a dataset stores latents that are not normalised")
    inputs: dict[str, Input] = {"--model": model(arguments.model), "--statistics": shards(arguments.statistics)}
    inputs |= {f"--latents {name}": name if name in files else shards(name) for name in arguments.latents}
    check_output_folder(arguments.output, inputs)

    from trainer.engine.device import find_device
    from trainer.evaluation.run import load_model
    from trainer.latents.decode import write_videos
    from trainer.latents.encoder import identify, model_directory
    from trainer.latents.named_latents import latents_of

    with naming("--model "), model_directory(arguments.model) as folder:
        identity = identify(folder)
        network = load_model(folder, find_device(arguments.device))
    latents = latents_of(
        arguments.latents,
        identity,
        split=arguments.split or "train",
        keys=arguments.key,
        limit=arguments.limit,
        fps=None if arguments.fps is None else Fraction(arguments.fps).limit_denominator(1001),
        statistics=arguments.statistics,
    )
    with speaking_of({"data.shards=": "--latents ", "data.split=": "--split "}):
        written = write_videos(network, latents, arguments.output, counter("videos"))
    print(f"{arguments.output}: {counted(written, 'video')}")
    return DONE


def _parser() -> Parser:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--model", type=place, required=True, help="model directory, or its s3:// address")
    parser.add_argument(
        "--latents",
        type=place,
        required=True,
        nargs="+",
        metavar="PLACE",
        help="datasets of latents (folder or s3://bucket/prefix) and .safetensors files",
    )
    parser.add_argument("--output", type=path, required=True, help="folder to write; new or empty")
    parser.add_argument("--key", nargs="+", default=[], help="only these samples of a dataset")
    parser.add_argument("--split", choices=SPLITS, help="of a dataset (default: train)")
    parser.add_argument("--limit", type=whole_number(1), help="at most so many samples of each dataset or file")
    parser.add_argument(
        "--fps", type=positive_number, help="frames a second (default: those of the dataset; needed for files)"
    )
    parser.add_argument(
        "--statistics", type=place, help="dataset of latents by whose statistics the latents in files were normalised"
    )
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
