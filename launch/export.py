"""Write a model directory from a checkpoint of any number of ranks and any ZeRO stage, on one CPU.

    python launch/export.py --checkpoint runs/base --output models/base
    python launch/export.py --checkpoint runs/base --step 20000 --weights raw --output models/base-20000
    python launch/export.py --checkpoint s3://bucket/runs/base --output models/base

`VidTwin.from_pretrained`, launch/evaluate.py, launch/reconstruct.py and `init_from` take what it writes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.command_line import script_parser
from launch.exit_status import DONE, ends_with_status
from launch.option_types import path, place, whole_number
from launch.outputs import check_output_folder


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument(
        "--checkpoint",
        type=place,
        required=True,
        help="a run's output directory, one of its checkpoints, or its checkpoint.upload",
    )
    parser.add_argument("--output", type=path, required=True, help="directory to write; new or empty")
    parser.add_argument(
        "--step", type=whole_number(0), help="take the checkpoint of this step (default: the newest complete one)"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="moving average or the weights themselves (default: the average where the checkpoint has one)",
    )
    arguments = parser.parse_args(argv)
    check_output_folder(arguments.output, {"--checkpoint": arguments.checkpoint})

    from model.provenance import Weights
    from trainer.checkpoint.export import export

    weights = Weights(arguments.weights) if arguments.weights else None
    done = export(arguments.checkpoint, arguments.output, arguments.step, weights)
    print(f"{arguments.output}: {done.weights.value} weights of step {done.step}, from {done.checkpoint}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
