"""What `launch/evaluate.py` is asked to measure: its options, and the windows and networks that they name."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch import inputs
from launch.command_line import Parser, script_parser
from launch.exit_status import described
from launch.option_types import add_device, path, place, whole_number
from launch.outputs import check_output_file

if TYPE_CHECKING:
    import torch

    from model.lpips import LPIPS
    from model.vidtwin import VidTwin
    from trainer.evaluation.frechet import VideoFeatures, VideoFrechet
    from trainer.evaluation.sources import WindowSource


def evaluation_parser(file: str, description: str | None) -> Parser:
    """The options of the script `file`."""
    parser = script_parser(file, description)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", type=place, help="model directory, or its s3:// address")
    models.add_argument(
        "--checkpoints", type=path, metavar="RUN", help="a run's output directory: measure every checkpoint it holds"
    )
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--shards", type=place, help="measure on a dataset of shards: folder or s3://bucket/prefix")
    measured.add_argument("--source", type=place, help="measure on raw videos: a folder, or one video")
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="file to write the report to: .json, with --checkpoints also .html",
    )
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
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="with --checkpoints: moving average or the weights themselves (the average where there is one)",
    )
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


def check(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse options that belong to the other kind of input, and an output that cannot be written or is an input."""
    given, others = ("--shards", ("list", "interval")) if arguments.shards else ("--source", ("split", "resize"))
    stray = [f"--{name}" for name in others if getattr(arguments, name) is not None]
    if not stray and arguments.model is not None and arguments.weights is not None:
        given, stray = "--model", ["--weights"]
    if not stray and arguments.checkpoints is not None and arguments.untrained:
        given, stray = "--checkpoints", ["--untrained"]
    if stray:
        parser.error(f"{' and '.join(stray)} means nothing with {given}; leave it away")
    if arguments.output is not None:
        folders = {
            "--model": inputs.model(arguments.model),
            "--checkpoints": inputs.run(arguments.checkpoints),
            "--shards": inputs.shards(arguments.shards),
            "--source": inputs.videos(arguments.source),
        }
        files = {f"--{name}": getattr(arguments, name) for name in ("list", "lpips", "fvd")}
        suffixes = (".json",) if arguments.checkpoints is None else (".json", ".html")
        check_output_file(arguments.output, suffixes, folders | files)


def open_sources(arguments: argparse.Namespace, model: VidTwin) -> list[WindowSource]:
    """The windows that are measured, of the shape that the model takes: one source for each split, or the videos."""
    from trainer.evaluation.run import window_frames
    from trainer.evaluation.sources import ShardSource, VideoFiles, find_videos

    frames, size, most = window_frames(model, arguments.frames), model.config.image_size, arguments.max_windows
    if arguments.shards is None:
        videos = find_videos(arguments.source, arguments.list)
        return [VideoFiles(videos, frames, size, arguments.interval, most)]
    splits = dict.fromkeys(arguments.split or ["val"])
    return [ShardSource(arguments.shards, split, frames, size, arguments.resize or 0, most) for split in splits]


@dataclass(frozen=True)
class Networks:
    """The networks that measure, loaded once for all models and sources.

    Attributes:
        perceptual: the perceptual networks, by the names of their metrics.
        features: the feature network of FVD; None where FVD is not measured.
    """

    perceptual: dict[str, LPIPS]
    features: VideoFeatures | None

    def frechet(self) -> VideoFrechet | None:
        """An empty FVD; None where it is not measured."""
        from trainer.evaluation.frechet import VideoFrechet

        return VideoFrechet(self.features) if self.features is not None else None


def load_networks(arguments: argparse.Namespace, device: torch.device) -> Networks:
    """The networks of the metrics that were asked for. Raises: ValueError for a file that is none of these."""
    from model.lpips import LPIPS
    from model.st_lpips import STLPIPS
    from trainer.evaluation.frechet import VideoFeatures

    networks: dict[str, LPIPS] = {}
    if arguments.lpips:
        try:
            networks["lpips"] = LPIPS.from_files(arguments.lpips).to(device)
        except (ValueError, OSError) as error:
            raise ValueError(f"--lpips: {described(error)}; docs/evaluation.md says how to make the file") from error
    if arguments.st_lpips:
        networks["st_lpips"] = STLPIPS.from_package().to(device)
    return Networks(networks, VideoFeatures(arguments.fvd, device) if arguments.fvd else None)
