"""The options of launch/estimate.py."""

from __future__ import annotations

from launch.command_line import Parser, config_parser
from launch.option_types import path, positive_number, share, whole_number
from trainer.config.networks import NetworkRunConfig
from trainer.estimate.options import ASSUMED_SHARE, BANDWIDTH
from trainer.telemetry.gpu_peaks import PEAKS


def estimate_parser(file: str, doc: str | None, cls: type[NetworkRunConfig]) -> Parser:
    """The parser, with the keys of the training that is estimated.

    Args:
        file, doc: name and docstring of the script.
    """
    parser = config_parser(cls, file, doc)
    parser.add_argument(
        "--diffusion", action="store_true", help="estimate launch/train_diffusion.py, not launch/train.py"
    )
    parser.add_argument(
        "--model",
        type=path,
        metavar="PLACE",
        help="with --diffusion, in place of data.shards=: the VidTwin that will make the latents, a model directory or "
        "a file such as configs/model/base.yaml",
    )
    parser.add_argument(
        "--classes", type=whole_number(1), metavar="N", help="with --model: how many classes the clips will have"
    )
    parser.add_argument(
        "--price", type=positive_number, help="of one GPU for one hour, in any currency: what the run costs"
    )
    parser.add_argument(
        "--figure5",
        action="store_true",
        help="show what a plain transformer costs on the model's latents, and on others",
    )
    parser.add_argument(
        "--gpus", type=whole_number(1), default=1, metavar="N", help="ranks that share the global batch (1)"
    )
    parser.add_argument(
        "--device",
        choices=[*PEAKS, "this"],
        default="h100",
        help="whose speed: this = time real steps on this machine; others are assumed from their data sheets (h100)",
    )
    parser.add_argument(
        "--share", type=share, help=f"share of a data sheet's peak that a step reaches ({ASSUMED_SHARE})"
    )
    parser.add_argument(
        "--bandwidth",
        type=positive_number,
        default=BANDWIDTH,
        metavar="GB/s",
        help=f"what a rank sends to ranks that are not timed here, and receives as well ({BANDWIDTH:g})",
    )
    parser.add_argument(
        "--measure",
        type=whole_number(1),
        metavar="L",
        help="with --device this: how many of the N this machine is (as many as it has GPUs; without GPUs, all)",
    )
    return parser
