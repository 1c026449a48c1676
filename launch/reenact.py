"""Give the structure of one video the dynamics of another: structure source | dynamics source | the mixture.

python launch/reenact.py --model runs/base/model --structure a.mp4 --dynamics b.mp4 --output mixed.mp4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from launch.command_line import counter
from trainer.evaluation.reconstruction import reenact
from trainer.evaluation.run import load_model


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory, or its s3:// address")
    parser.add_argument("--structure", required=True, help="video that gives content and global movement")
    parser.add_argument("--dynamics", required=True, help="video that gives detail and rapid movement")
    parser.add_argument("--output", required=True, help="the .mp4 to write")
    parser.add_argument("--interval", type=int, help="use every n-th frame of both (default: round(fps / 25) of each)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        written = reenact(
            load_model(arguments.model, torch.device(arguments.device)),
            arguments.structure,
            arguments.dynamics,
            arguments.output,
            interval=arguments.interval,
            progress=counter("frames"),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {written.frames} frames at {float(written.fps):g} fps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
