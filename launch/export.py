"""Write a model from a checkpoint of any number of ranks and any ZeRO stage, or in another form, on one CPU.

    python launch/export.py --checkpoint runs/base --output models/base
    python launch/export.py --checkpoint runs/base --step 20000 --weights raw --output models/base-20000
    python launch/export.py --checkpoint s3://bucket/runs/base --output models/base
    python launch/export.py --model models/base --format diffusers --output hub/base

`VidTwin.from_pretrained`, launch/evaluate.py, launch/reconstruct.py and `init_from` take a model directory, the default
form. The other forms need nothing of this project (docs/export.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from launch.command_line import Parser, script_parser
from launch.exit_status import DONE, ends_with_status
from launch.inputs import model
from launch.option_types import path, place, whole_number
from launch.outputs import check_output_folder
from model.export.formats import Format

GRAPHS = (Format.torch_export.value, Format.onnx.value)


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check_combination(parser, arguments)
    inputs = {
        "--checkpoint": arguments.checkpoint,
        "--model": model(arguments.model),
        "--statistics": arguments.statistics,
    }
    check_output_folder(arguments.output, inputs)

    from data_pipeline.store.files import atomic_folder
    from model.export.latent_statistics import read_statistics
    from model.export.write import write
    from model.provenance import Weights
    from model.vidtwin import VidTwin
    from trainer.checkpoint.export import export, load

    form = Format(arguments.format)
    weights = Weights(arguments.weights) if arguments.weights else None
    if arguments.checkpoint and form is Format.model:
        done = export(arguments.checkpoint, arguments.output, arguments.step, weights)
        print(f"{arguments.output}: {done.describe()}")
        return DONE
    if arguments.model:
        vidtwin, source = VidTwin.from_pretrained(arguments.model), f"from {arguments.model}"
    else:
        vidtwin, done = load(arguments.checkpoint, arguments.step, weights)
        source = done.describe()
    statistics = read_statistics(arguments.statistics, vidtwin.config) if arguments.statistics else None
    with atomic_folder(arguments.output) as folder:
        write(vidtwin, folder, form, arguments.frames, arguments.image_size, statistics)
    print(f"{arguments.output}: format {form.value}, {source}")
    return DONE


def _parser() -> Parser:
    parser = script_parser(__file__, __doc__)
    parser.add_argument(
        "--checkpoint",
        type=place,
        help="a run's output directory, one of its checkpoints, or its checkpoint.upload",
    )
    parser.add_argument("--model", type=place, help="in place of --checkpoint: model directory, or its s3:// address")
    parser.add_argument("--output", type=path, required=True, help="directory to write; new or empty")
    parser.add_argument(
        "--format",
        choices=[form.value for form in Format],
        default=Format.model.value,
        help="model: for this project; torch-export, onnx: encoder and decoder as graphs, for torch alone and for an "
        "ONNX runtime; diffusers: for diffusers, with its code (default: %(default)s)",
    )
    parser.add_argument(
        "--step", type=whole_number(0), help="take the checkpoint of this step (default: the newest complete one)"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="moving average or the weights themselves (default: the average where the checkpoint has one)",
    )
    parser.add_argument(
        "--frames", type=whole_number(1), help="of the clips that the graphs take (default: the model's frames)"
    )
    parser.add_argument(
        "--image-size", type=whole_number(1), help="of these clips, in pixels (default: the model's image_size)"
    )
    parser.add_argument(
        "--statistics",
        type=path,
        metavar="FILE",
        help="mean and deviation of latents, for diffusers: JSON, or a dataset of latents",
    )
    return parser


def _check_combination(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse options that exclude each other, and a format that this machine cannot write."""
    if (arguments.checkpoint is None) == (arguments.model is None):
        parser.error("one of --checkpoint and --model is needed, and not both")
    for option, needs in (("step", "--checkpoint"), ("weights", "--checkpoint")):
        if getattr(arguments, option) is not None and arguments.model is not None:
            parser.error(f"argument --{option}: a model directory has only one set of weights; give {needs} instead")
    for option in ("frames", "image_size"):
        if getattr(arguments, option) is not None and arguments.format not in GRAPHS:
            name = option.replace("_", "-")
            parser.error(f"argument --{name}: only --format {' or '.join(GRAPHS)} fixes the size of clips")
    if arguments.statistics is not None and arguments.format != Format.diffusers.value:
        parser.error(f"argument --statistics: only --format {Format.diffusers.value} has a place for them")
    missing = [name for name in ("onnx", "onnxscript") if not find_spec(name)]
    if arguments.format == Format.onnx.value and missing:
        parser.error(f"--format onnx needs the package {missing[0]}; install this project with its extra `onnx`")


if __name__ == "__main__":
    sys.exit(main())
