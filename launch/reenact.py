"""Give the structure of one video the dynamics of another: structure source | dynamics source | the mixture.

python launch/reenact.py --model runs/base/model --structure a.mp4 --dynamics b.mp4 --output mixed.mp4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_pipeline.outside.naming import naming
from data_pipeline.store.counted import counted
from launch.command_line import counter, script_parser
from launch.exit_status import DONE, ends_with_status
from launch.inputs import model
from launch.option_types import add_device, path, place, whole_number
from launch.outputs import VIDEOS, check_output_file


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--model", type=place, required=True, help="model directory, or its s3:// address")
    parser.add_argument("--structure", type=path, required=True, help="video that gives content and global movement")
    parser.add_argument("--dynamics", type=path, required=True, help="video that gives detail and rapid movement")
    parser.add_argument("--output", type=path, required=True, help=f"the video to write: {' '.join(VIDEOS)}")
    parser.add_argument(
        "--interval", type=whole_number(1), help="use every n-th frame of both (default: round(fps / 25) of each)"
    )
    add_device(parser)
    arguments = parser.parse_args(argv)
    inputs = {"--structure": arguments.structure, "--dynamics": arguments.dynamics, "--model": model(arguments.model)}
    check_output_file(arguments.output, VIDEOS, inputs)

    from trainer.engine.device import find_device
    from trainer.evaluation.reconstruction import reenact
    from trainer.evaluation.run import load_model

    device = find_device(arguments.device)
    with naming("--model "):
        vidtwin = load_model(arguments.model, device)
    written = reenact(
        vidtwin,
        arguments.structure,
        arguments.dynamics,
        arguments.output,
        interval=arguments.interval,
        progress=counter("frames"),
    )
    for stretch in written.left_out:
        print(f"left out: {stretch}")
    print(f"{arguments.output}: {counted(written.frames, 'frame')} at {float(written.fps):g} fps")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
