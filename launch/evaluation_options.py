"""What `launch/evaluate.py` is asked to measure: its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launch import inputs
from launch.command_line import Parser, script_parser
from launch.option_types import add_device, path, place, whole_number
from launch.outputs import check_output_file, check_output_folder

OUTPUT_FILES = ("report.html", "report.json", "windows.csv")


def evaluation_parser(file: str, description: str | None) -> Parser:
    """The options of the script `file`."""
    parser = script_parser(file, description)
    _add_models(parser)
    _add_windows(parser)
    _add_measures(parser)
    parser.add_argument(
        "--batch", type=whole_number(1), default=4, help="windows put through the network together (%(default)s)"
    )
    add_device(parser)
    parser.add_argument("--untrained", action="store_true", help="same architecture, fresh random weights: a baseline")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="of checkpoints: moving average or the weights themselves (the average where there is one)",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher sends it
    _add_options_of_one_input(parser)
    return parser


def _add_models(parser: Parser) -> None:
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    parser.add_argument("--model", type=place, **several, help="model directories, their s3:// addresses, checkpoints")
    parser.add_argument(
        "--checkpoints",
        type=path,
        **several,
        metavar="RUN",
        help="output directories of runs: measure every checkpoint that they hold",
    )
    parser.add_argument(
        "--baseline", type=place, metavar="MODEL", help="one more model, or one of them: compare the others with it"
    )


def _add_windows(parser: Parser) -> None:
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--shards", type=place, help="measure on a dataset of shards: folder or s3://bucket/prefix")
    measured.add_argument("--source", type=place, help="measure on raw videos: a folder, or one video")
    parser.add_argument(
        "--output",
        type=path,
        metavar="FOLDER",
        help="folder for report.html, report.json and windows.csv; what it holds of earlier runs is used again",
    )
    parser.add_argument(
        "--protocol",
        choices=("mcl-jcv", "ucf-101"),
        help="with --source: show the paper's rows beside, and what differs",
    )
    parser.add_argument("--frames", type=whole_number(1), help="frames of a window, of a model that takes shorter ones")
    parser.add_argument(
        "--max-windows", type=whole_number(1), help="at most so many windows (of each video, or of each split)"
    )


def _add_measures(parser: Parser) -> None:
    parser.add_argument("--lpips", type=path, metavar="FILE", help="LPIPS-VGG weights, a .safetensors file")
    parser.add_argument(
        "--st-lpips", action="store_true", help="measure ST-LPIPS; its weights come with the extra `perceptual`"
    )
    parser.add_argument("--vmaf", action="store_true", help="measure VMAF; it comes with the extra `vmaf`")
    parser.add_argument(
        "--frechet-efficientnet",
        action="store_true",
        help="measure Frechet distances of frames and of their differences; weights: the extra `generation`",
    )
    parser.add_argument("--fvd", type=path, metavar="FILE", help="feature network of FVD, a TorchScript file")
    parser.add_argument(
        "--fvd-preset",
        choices=("fvd2048_16f",),
        help="with --fvd: measure what the published protocol draws, one clip of each of the first 2048 videos",
    )
    parser.add_argument(
        "--few-clips", action="store_true", help="give an FVD of too few clips, which compares with nothing"
    )


def _add_options_of_one_input(parser: Parser) -> None:
    shards = parser.add_argument_group("with --shards")
    shards.add_argument(
        "--split", nargs="+", action="extend", choices=("train", "val", "test"), help="splits to measure (val)"
    )
    shards.add_argument(
        "--resize", type=whole_number(0), help="scale the short side to this before cropping; 0 = not (0)"
    )
    videos = parser.add_argument_group("with --source")
    videos.add_argument("--list", type=path, metavar="FILE", help="text file of paths below the folder, one a line")
    videos.add_argument("--interval", type=whole_number(1), help="use every n-th frame (default: round(fps / 25))")


def check(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse options that belong to the other kind of input, and an output that cannot be written or is an input."""
    if not arguments.model and not arguments.checkpoints:
        parser.error("one of the arguments --model --checkpoints is required")
    others = ("list", "interval", "protocol") if arguments.shards else ("split", "resize")
    given = "--shards" if arguments.shards else "--source"
    if stray := [f"--{name}" for name in others if getattr(arguments, name) is not None]:
        parser.error(f"{' and '.join(stray)} means nothing with {given}; leave it away")
    if arguments.fvd is None and (arguments.fvd_preset or arguments.few_clips):
        parser.error("--fvd-preset and --few-clips mean nothing without --fvd; leave them away")
    if arguments.fvd_preset:
        others = ("interval", "max_windows", "protocol")
        if stray := [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name) is not None]:
            parser.error(f"--fvd-preset draws its own clips, so {' and '.join(stray)} means nothing; leave it away")
    if arguments.checkpoints and arguments.untrained:
        parser.error("--untrained means nothing with --checkpoints; leave it away")
    if arguments.output is not None:
        given_once: dict[str, inputs.Input] = {
            "--shards": inputs.shards(arguments.shards),
            "--source": inputs.videos(arguments.source),
            "--baseline": inputs.model(arguments.baseline),
            **{f"--{name}": getattr(arguments, name) for name in ("list", "lpips", "fvd")},
        }
        read = [given_once]
        read += [{"--model": inputs.model(place)} for place in arguments.model or ()]
        read += [{"--checkpoints": inputs.run(run)} for run in arguments.checkpoints or ()]
        for some in read:
            check_output_folder(arguments.output, some, empty=False)
            for name in OUTPUT_FILES:
                check_output_file(arguments.output / name, (Path(name).suffix,), some)
