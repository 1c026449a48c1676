"""Reconstruct a video of any length: source left, reconstruction right.

    python launch/reconstruct.py --model runs/base/model --video in.mp4 --output out.mp4

Every sampled frame is written once. Where the frames do not divide into whole windows, the last window reaches back
over frames already written, so nothing is invented. Frames are scaled and centre-cropped to the model's square.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from launch.command_line import counter
from trainer.evaluation.reconstruction import reconstruct_video
from trainer.evaluation.run import load_model


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory, or its s3:// address")
    parser.add_argument("--video", required=True, help="the video to reconstruct")
    parser.add_argument("--output", required=True, help="the .mp4 to write")
    parser.add_argument("--interval", type=int, help="use every n-th frame (default: round(fps / 25), at least 1)")
    parser.add_argument("--alone", action="store_true", help="write the reconstruction without the source beside it")
    parser.add_argument("--batch", type=int, default=1, help="windows put through the network together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        written = reconstruct_video(
            load_model(arguments.model, torch.device(arguments.device)),
            arguments.video,
            arguments.output,
            interval=arguments.interval,
            beside=not arguments.alone,
            batch=arguments.batch,
            progress=counter("frames"),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {written.frames} frames at {float(written.fps):g} fps, PSNR {written.psnr:.2f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
