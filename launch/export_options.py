"""What `launch/export.py` is asked to write: its options, and the combinations that cannot be."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from launch.command_line import Parser, script_parser
from launch.option_types import path, place, whole_number
from model.export.formats import Format

GRAPHS = (Format.torch_export.value, Format.onnx.value)


def export_parser(file: str, description: str | None) -> Parser:
    """The options of the script `file`."""
    parser = script_parser(file, description)
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
        type=place,
        metavar="PLACE",
        help="mean and deviation of latents, for diffusers: a JSON file, or a dataset of latents that this model has "
        "encoded (folder or s3://bucket/prefix)",
    )
    return parser


def check_combination(parser: Parser, arguments: argparse.Namespace) -> None:
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
