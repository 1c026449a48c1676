"""Memory of a rank by ZeRO stage, and clips a second, before a training is started (docs/training_estimate.md).

python launch/estimate.py --config configs/train/paper.yaml configs/model/base.yaml --gpus 6 key=value...
python launch/estimate.py ... --device this     # the speed from real steps, timed on this machine
python launch/estimate.py --diffusion --config configs/diffusion/paper.yaml data.shards=data/latents    # of a DiT
python launch/estimate.py --diffusion --config configs/diffusion/ucf101.yaml --model runs/base/model --classes 101
python launch/estimate.py --config configs/model/base.yaml --figure5     # what a transformer costs on the latents
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.outside.naming import naming
from launch.command_line import Parser, parse_overrides
from launch.estimate_options import estimate_parser
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from model.config import CONFIG_FILE, VidTwinConfig, read_config
from model.dit_config import Conditioning
from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.estimate.options import Options

if TYPE_CHECKING:
    from trainer.config.networks import NetworkRunConfig
    from trainer.estimate.trace import Tracer

# What a training must be told and an estimate need not know.
UNKNOWN = "unused"
UNUSED = dict.fromkeys(("output", "data.shards", "loss.lpips_weights", "init_from"), UNKNOWN)
UNUSED_BY_DIT = dict.fromkeys(("output", "data.shards"), UNKNOWN)


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 for steps that could not be timed, and as docs/commands.md says."""
    words = sys.argv[1:] if argv is None else argv
    parser = estimate_parser(__file__, __doc__, DiffusionConfig if "--diffusion" in words else TrainConfig)
    arguments = parse_overrides(parser, words)
    if arguments.measure is not None and arguments.measure > arguments.gpus:
        parser.error(f"--measure {arguments.measure} must lie between 1 and the {arguments.gpus} of --gpus")
    if arguments.figure5:
        return _figure5(parser, arguments)
    options = Options(arguments.device, arguments.share, arguments.bandwidth, arguments.measure, arguments.price)
    if arguments.diffusion:
        return _of_dit(parser, arguments, options)
    if arguments.model is not None or arguments.classes is not None:
        parser.error("--model and --classes describe latents; give --diffusion as well")
    config = load_config(TrainConfig, arguments.config, arguments.overrides, UNUSED)

    from trainer.estimate.trace import trace

    return _estimate(parser, config, arguments.gpus, options, trace)


def _figure5(parser: Parser, arguments: argparse.Namespace) -> int:
    if arguments.diffusion:
        parser.error("--diffusion means nothing with --figure5; leave it away")
    if stray := sorted(vars(arguments).get("given", ())):
        parser.error(f"--{stray[0]} means nothing with --figure5; leave it away")
    config = load_config(TrainConfig, arguments.config, arguments.overrides, UNUSED)
    from trainer.estimate import figure5

    print(figure5.table(config.model))
    return DONE


def _of_dit(parser: Parser, arguments: argparse.Namespace, options: Options) -> int:
    if options.device == "this":
        parser.error("--device this times steps of launch/train.py only; name a device with a data sheet")
    config = load_config(DiffusionConfig, arguments.config, arguments.overrides, UNUSED_BY_DIT)
    classed = config.dit.condition is Conditioning.class_
    if arguments.model is not None and config.data.shards != UNKNOWN:
        parser.error(
            f"--model {arguments.model} and data.shards={config.data.shards} both name the latents; leave one of the "
            "two away"
        )
    if arguments.model is None and config.data.shards == UNKNOWN:
        parser.error("name the latents: data.shards=DATASET, or --model DIRECTORY of the VidTwin that will make them")
    if arguments.model is not None and classed and arguments.classes is None:
        parser.error(f"--model {arguments.model} with dit.condition=class needs --classes N, how many there will be")
    if arguments.classes is not None and not (arguments.model is not None and classed):
        parser.error(f"--classes {arguments.classes} belongs to --model with dit.condition=class; leave it away")

    from trainer.estimate.trace_dit import space_of_data, space_of_model, trace_dit

    if arguments.model is None:
        space = space_of_data(config)
    else:
        space = space_of_model(_vidtwin(arguments.model), arguments.classes or 0, config.data.text)
    return _estimate(parser, config, arguments.gpus, options, partial(trace_dit, space=space))


def _vidtwin(place: Path) -> VidTwinConfig:
    """The configuration of a model directory, or the one that a file such as configs/model/base.yaml trains."""
    with naming("--model "):
        if place.is_dir():
            return read_config(place / CONFIG_FILE)
        return load_config(TrainConfig, [place], [], UNUSED).model


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


if __name__ == "__main__":
    sys.exit(main())
