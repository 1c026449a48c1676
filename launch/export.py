"""Write a model directory from a checkpoint of any number of ranks and any ZeRO stage, on one CPU.

    python launch/export.py --checkpoint runs/base --output models/base
    python launch/export.py --checkpoint runs/base --step 20000 --weights raw --output models/base-20000
    python launch/export.py --checkpoint s3://bucket/runs/base --output models/base

`VidTwin.from_pretrained`, launch/evaluate.py, launch/reconstruct.py and `init_from` take what it writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.export import Weights, export


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", required=True, help="a run's output directory, one of its checkpoints, or its checkpoint.upload"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write; new or empty")
    parser.add_argument("--step", type=int, help="take the checkpoint of this step (default: the newest complete one)")
    parser.add_argument(
        "--weights",
        choices=[choice.value for choice in Weights],
        help="moving average or the weights themselves (default: the average where the checkpoint has one)",
    )
    arguments = parser.parse_args(argv)
    weights = Weights(arguments.weights) if arguments.weights else None
    try:
        done = export(arguments.checkpoint, arguments.output, arguments.step, weights)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {done.weights.value} weights of step {done.step}, from {done.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
