"""Memory of a rank by ZeRO stage, and clips a second, before a training is started (docs/training.md).

python launch/estimate.py --config configs/train/paper.yaml configs/model/base.yaml --gpus 6 key=value...
python launch/estimate.py ... --device this     # the speed from real steps, timed on this machine
python launch/estimate.py --diffusion --config configs/diffusion/paper.yaml data.shards=data/latents    # of a DiT
python launch/estimate.py --diffusion --config configs/diffusion/ucf101.yaml --model runs/base/model --classes 101
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from launch.option_types import path, positive_number, share, whole_number
from model.config import CONFIG_FILE, VidTwinConfig, read_config
from model.dit_config import Conditioning
from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config
from trainer.config.networks import NetworkRunConfig
from trainer.config.train import TrainConfig
from trainer.estimate.options import ASSUMED_SHARE, BANDWIDTH, Options
from trainer.telemetry.gpu_peaks import PEAKS

if TYPE_CHECKING:
    from trainer.estimate.trace import Tracer

# What a training must be told and an estimate need not know.
UNKNOWN = "unused"
UNUSED = [f"{key}={UNKNOWN}" for key in ("output", "data.shards", "loss.lpips_weights", "init_from")]
UNUSED_BY_DIT = [f"{key}={UNKNOWN}" for key in ("output", "data.shards")]


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 for steps that could not be timed, and as docs/commands.md says."""
    words = sys.argv[1:] if argv is None else argv
    parser = _parser(DiffusionConfig if "--diffusion" in words else TrainConfig)
    arguments = parse_overrides(parser, words)
    if arguments.measure is not None and arguments.measure > arguments.gpus:
        parser.error(f"--measure {arguments.measure} must lie between 1 and the {arguments.gpus} of --gpus")
    options = Options(arguments.device, arguments.share, arguments.bandwidth, arguments.measure, arguments.price)
    if arguments.diffusion:
        return _of_dit(parser, arguments, options)
    if arguments.model is not None or arguments.classes is not None:
        parser.error("--model and --classes describe latents; give --diffusion as well")
    config = load_config(TrainConfig, arguments.config, UNUSED + arguments.overrides)

    from trainer.estimate.trace import trace

    return _estimate(parser, config, arguments.gpus, options, trace)


def _of_dit(parser: Parser, arguments: argparse.Namespace, options: Options) -> int:
    config = load_config(DiffusionConfig, arguments.config, UNUSED_BY_DIT + arguments.overrides)
    classed = config.dit.condition is Conditioning.class_
    if (arguments.model is None) == (config.data.shards == UNKNOWN):
        parser.error("name the latents: data.shards=DATASET, or --model DIRECTORY of the VidTwin that will make them")
    if (arguments.classes is not None) != (arguments.model is not None and classed):
        parser.error("--classes N belongs to --model with dit.condition=class, and only there")

    from trainer.estimate.trace_dit import space_of_data, space_of_model, trace_dit

    if arguments.model is None:
        space = space_of_data(config)
    else:
        space = space_of_model(_vidtwin(arguments.model), arguments.classes or 0)
    return _estimate(parser, config, arguments.gpus, options, partial(trace_dit, space=space))


def _vidtwin(place: Path) -> VidTwinConfig:
    """The configuration of a model directory, or the one that a file such as configs/model/base.yaml trains."""
    if place.is_dir():
        return read_config(place / CONFIG_FILE)
    return load_config(TrainConfig, [place], UNUSED).model


def _estimate(parser: Parser, config: NetworkRunConfig, gpus: int, options: Options, tracer: Tracer) -> int:
    from trainer.estimate import memory, prediction
    from trainer.estimate.stopwatch import StopwatchError

    found = memory.estimate(config, gpus, tracer=tracer)
    print(memory.table(found, config, gpus), flush=True)
    try:
        print(prediction.predicted(config, found.trace, gpus, options))
    except StopwatchError as error:
        print(error, file=sys.stderr)
        complain(parser.prog, "the steps could not be timed; see above")
        return FAILED
    return DONE


def _parser(cls: type[NetworkRunConfig]) -> Parser:
    """The parser, with the keys of the training that is estimated."""
    parser = config_parser(cls, __file__, __doc__)
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


if __name__ == "__main__":
    sys.exit(main())
