"""Measure a model's reconstructions: PSNR, SSIM, compression rate, and LPIPS and FVD where their weights are given.

python launch/evaluate.py --model runs/base/model --shards data/shards            # the dataset's val split
python launch/evaluate.py --model runs/base/model --source MCL-JCV/ --lpips lpips.safetensors --fvd i3d_torchscript.pt
python launch/evaluate.py --model runs/base/model --source UCF-101/ --list ucfTrainTestlist/testlist01.txt
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch import inputs
from launch.command_line import Parser, counter, script_parser
from launch.exit_status import DONE, described, ends_with_status
from launch.option_types import add_device, path, place, whole_number
from launch.outputs import check_output_file

if TYPE_CHECKING:
    import torch

    from model.lpips import LPIPS

if TYPE_CHECKING:
    from model.provenance import Provenance


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if stray := _without_effect(arguments):
        parser.error(stray)
    if arguments.output is not None:
        folders = {
            "--model": inputs.model(arguments.model),
            "--shards": inputs.shards(arguments.shards),
            "--source": inputs.videos(arguments.source),
        }
        files = {f"--{name}": getattr(arguments, name) for name in ("list", "lpips", "fvd")}
        check_output_file(arguments.output, (".json",), folders | files)

    from trainer.evaluation.frechet import VideoFrechet
    from trainer.evaluation.run import CutShort, evaluate, find_device, load_model, table, window_frames
    from trainer.evaluation.sources import ShardSource, VideoFiles, WindowSource, find_videos

    # Everything that can be refused is opened before the first window is measured.
    device = find_device(arguments.device)
    model = load_model(arguments.model, device, arguments.untrained)
    if model.provenance is not None:
        print(f"{arguments.model}: {model.provenance.describe()}\n", flush=True)
    frames, size, most = window_frames(model, arguments.frames), model.config.image_size, arguments.max_windows
    sources: list[WindowSource] = []
    if arguments.shards is not None:
        for split in dict.fromkeys(arguments.split or ["val"]):
            sources.append(ShardSource(arguments.shards, split, frames, size, arguments.resize or 0, most))
    else:
        videos = find_videos(arguments.source, arguments.list)
        sources.append(VideoFiles(videos, frames, size, arguments.interval, most))
    perceptual = _perceptual(arguments, device)
    frechets = [VideoFrechet(arguments.fvd, device) if arguments.fvd else None for _ in sources]

    results: list[dict[str, Any]] = []
    for source, fvd in zip(sources, frechets, strict=True):
        cause: BaseException | None = None
        try:
            result = evaluate(
                model, source, batch=arguments.batch, perceptual=perceptual, fvd=fvd, progress=counter("windows")
            )
        except CutShort as short:
            result, cause = short.report, short.__cause__
        print(table(result), end="\n\n", flush=True)
        results.append(result)
        if arguments.output is not None:
            _write(arguments, model.provenance, results)
        if cause is not None:
            raise cause
    if arguments.output is not None:
        print(f"written to {arguments.output}")
    return DONE


def _perceptual(arguments: argparse.Namespace, device: torch.device) -> dict[str, LPIPS]:
    """The perceptual networks that were asked for, by the names of their metrics."""
    from model.lpips import LPIPS
    from model.st_lpips import STLPIPS

    networks: dict[str, LPIPS] = {}
    if arguments.lpips:
        try:
            networks["lpips"] = LPIPS.from_files(arguments.lpips).to(device)
        except (ValueError, OSError) as error:
            raise ValueError(f"--lpips: {described(error)}; docs/evaluation.md says how to make the file") from error
    if arguments.st_lpips:
        networks["st_lpips"] = STLPIPS.from_package().to(device)
    return networks


def _parser() -> Parser:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--model", type=place, required=True, help="model directory, or its s3:// address")
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--shards", type=place, help="measure on a dataset of shards: folder or s3://bucket/prefix")
    measured.add_argument("--source", type=place, help="measure on raw videos: a folder, or one video")
    parser.add_argument("--output", type=path, metavar="FILE", help="write the report to this file, .json")
    parser.add_argument("--frames", type=whole_number(1), help="frames of a window, of a model that takes shorter ones")
    parser.add_argument(
        "--max-windows", type=whole_number(1), help="at most so many windows (of each video, or of each split)"
    )
    parser.add_argument("--lpips", type=path, metavar="FILE", help="LPIPS-VGG weights, a .safetensors file")
    parser.add_argument(
        "--st-lpips", action="store_true", help="measure ST-LPIPS; its weights come with the extra `perceptual`"
    )
    parser.add_argument("--fvd", type=path, metavar="FILE", help="I3D feature network, a TorchScript file")
    parser.add_argument(
        "--batch", type=whole_number(1), default=4, help="windows put through the network together (%(default)s)"
    )
    add_device(parser)
    parser.add_argument("--untrained", action="store_true", help="same architecture, fresh random weights: a baseline")
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
    return parser


def _without_effect(arguments: argparse.Namespace) -> str:
    """What is wrong with options that belong to the other kind of input."""
    given, others = ("--shards", ("list", "interval")) if arguments.shards else ("--source", ("split", "resize"))
    stray = [f"--{name}" for name in others if getattr(arguments, name) is not None]
    return f"{' and '.join(stray)} means nothing with {given}; leave it away" if stray else ""


def _write(arguments: argparse.Namespace, provenance: Provenance | None, results: list[dict[str, Any]]) -> None:
    from data_pipeline.store.files import atomic_file

    weights = "untrained" if arguments.untrained else "trained"
    source = None if provenance is None else provenance.to_json()
    report = {"format": 1, "model": arguments.model, "weights": weights, "provenance": source, "results": results}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
