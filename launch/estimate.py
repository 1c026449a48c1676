"""Memory of a rank by ZeRO stage, and clips a second, before a training is started (docs/training.md).

python launch/estimate.py --config configs/train/paper.yaml configs/model/base.yaml --gpus 6 key=value...
python launch/estimate.py ... --device this     # the speed from real steps, timed on this machine
"""

from __future__ import annotations

import argparse
import sys

from launch.command_line import config_parser, parse_overrides
from trainer.config.loader import load_config

# What a training must be told and an estimate need not know.
UNUSED = ["output=unused", "data.shards=unused", "loss.lpips_weights=unused", "init_from=unused"]


def main() -> int:
    """Exit status: 0 estimated, 2 wrong input or steps that could not be timed."""
    from trainer.config.train import TrainConfig
    from trainer.estimate import memory, prediction, speed
    from trainer.estimate.stopwatch import StopwatchError

    arguments = parse_overrides(_parser())
    try:
        config = load_config(TrainConfig, arguments.config, UNUSED + arguments.overrides)
        found = memory.estimate(config, arguments.gpus)
        print(memory.table(found, config, arguments.gpus), flush=True)
        options = speed.Options(arguments.device, arguments.share, arguments.bandwidth, arguments.measure)
        print(prediction.predicted(config, found.trace, arguments.gpus, options))
    except (ValueError, StopwatchError) as error:
        print(f"launch/estimate.py: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    from trainer.config.train import TrainConfig
    from trainer.estimate import speed
    from trainer.telemetry.gpu_peaks import PEAKS

    parser = config_parser(TrainConfig, "Estimate memory and speed of a training of launch/train.py.")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks that share the global batch (1)")
    parser.add_argument(
        "--device",
        choices=[*PEAKS, "this"],
        default="h100",
        help="whose speed: this = time real steps on this machine; others are assumed from their data sheets (h100)",
    )
    parser.add_argument(
        "--share", type=float, help=f"share of a data sheet's peak that a step reaches ({speed.ASSUMED_SHARE})"
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=speed.BANDWIDTH,
        metavar="GB/s",
        help=f"what a rank sends to ranks that are not timed here, and receives as well ({speed.BANDWIDTH:g})",
    )
    parser.add_argument(
        "--measure",
        type=int,
        metavar="L",
        help="with --device this: how many of the N this machine is (as many as it has GPUs; without GPUs, all)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
