"""Measure a model's reconstructions: PSNR, SSIM, compression rate, and LPIPS and FVD where their weights are given.

python launch/evaluate.py --model runs/base/model --source shards/              # a shard dataset's val split
python launch/evaluate.py --model runs/base/model --source MCL-JCV/ --lpips lpips.safetensors --fvd i3d_torchscript.pt
python launch/evaluate.py --model runs/base/model --source UCF-101/ --list ucfTrainTestlist/testlist01.txt
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from launch.command_line import counter
from model.lpips import LPIPS
from trainer.evaluation.frechet import VideoFrechet
from trainer.evaluation.run import evaluate, load_model, table, window_frames
from trainer.evaluation.sources import open_source


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory, or its s3:// address")
    parser.add_argument("--source", required=True, help="shard dataset (folder or s3://), folder of videos, or a video")
    parser.add_argument("--output", type=Path, help="write the report as JSON to this file")
    parser.add_argument("--split", nargs="+", default=["val"], help="splits of a shard dataset (default: val)")
    parser.add_argument("--frames", type=int, help="frames of a window, of a model that takes shorter clips as well")
    parser.add_argument("--resize", type=int, default=0, help="shards: scale the short side to this before cropping")
    parser.add_argument("--list", type=Path, help="videos: text file of paths below --source, one a line")
    parser.add_argument("--interval", type=int, help="videos: use every n-th frame (default: round(fps / 25))")
    parser.add_argument("--max-windows", type=int, help="at most so many windows (of each video, or of the split)")
    parser.add_argument("--lpips", type=Path, help="LPIPS-VGG weights, a .safetensors file")
    parser.add_argument("--fvd", type=Path, help="I3D feature network, a TorchScript file")
    parser.add_argument("--batch", type=int, default=4, help="windows put through the network together (default: 4)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--untrained", action="store_true", help="same architecture, fresh random weights: a baseline")
    arguments = parser.parse_args(argv)
    try:
        device = torch.device(arguments.device)
        model = load_model(arguments.model, device, arguments.untrained)
        frames = window_frames(model, arguments.frames)
        results = []
        for split in arguments.split:
            source = open_source(
                arguments.source,
                frames=frames,
                size=model.config.image_size,
                split=split,
                resize=arguments.resize,
                listing=arguments.list,
                interval=arguments.interval,
                max_windows=arguments.max_windows,
            )
            result = evaluate(
                model,
                source,
                batch=arguments.batch,
                lpips=LPIPS.from_files(arguments.lpips).to(device) if arguments.lpips else None,
                fvd=VideoFrechet(arguments.fvd, device) if arguments.fvd else None,
                progress=counter("windows"),
            )
            print(table(result), end="\n\n", flush=True)
            results.append(result)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.output is not None:
        weights = "untrained" if arguments.untrained else "trained"
        report = {"format": 1, "model": arguments.model, "weights": weights, "results": results}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
