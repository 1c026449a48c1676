"""Reconstruct a video of any length: source left, reconstruction right.

    python launch/reconstruct.py --model runs/base/model --source in.mp4 --output out.mp4

Every sampled frame is written once. Where the frames do not divide into whole windows, the last window reaches back
over frames already written, so nothing is invented. Frames are scaled and centre-cropped to the model's square.
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
    parser.add_argument("--source", type=path, required=True, help="the video to reconstruct")
    parser.add_argument("--output", type=path, required=True, help=f"the video to write: {' '.join(VIDEOS)}")
    parser.add_argument(
        "--interval", type=whole_number(1), help="use every n-th frame (default: round(fps / 25), at least 1)"
    )
    parser.add_argument("--alone", action="store_true", help="write the reconstruction without the source beside it")
    parser.add_argument(
        "--batch", type=whole_number(1), default=1, help="windows put through the network together (%(default)s)"
    )
    add_device(parser)
    arguments = parser.parse_args(argv)
    check_output_file(arguments.output, VIDEOS, {"--source": arguments.source, "--model": model(arguments.model)})

    from trainer.engine.device import find_device
    from trainer.evaluation.reconstruction import reconstruct_video
    from trainer.evaluation.run import load_model

    device = find_device(arguments.device)
    with naming("--model "):
        vidtwin = load_model(arguments.model, device)
    written = reconstruct_video(
        vidtwin,
        arguments.source,
        arguments.output,
        interval=arguments.interval,
        beside=not arguments.alone,
        batch=arguments.batch,
        progress=counter("frames"),
    )
    for stretch in written.left_out:
        print(f"left out: {stretch}")
    frames = f"{counted(written.frames, 'frame')} at {float(written.fps):g} fps"
    print(f"{arguments.output}: {frames}, PSNR {written.psnr:.2f} dB")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
