"""Memory of a rank by ZeRO stage, and clips a second, before a training is started (docs/training.md).

python launch/estimate.py --config configs/train/paper.yaml configs/model/base.yaml --gpus 6 key=value...
python launch/estimate.py ... --device this     # the speed from real steps, timed on this machine
python launch/estimate.py --config configs/model/base.yaml --figure5     # what a transformer costs on the latents
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.command_line import Parser, config_parser, parse_overrides
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from launch.option_types import positive_number, share, whole_number
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.estimate.options import ASSUMED_SHARE, BANDWIDTH, Options
from trainer.telemetry.gpu_peaks import PEAKS

# What a training must be told and an estimate need not know.
UNUSED = ["output=unused", "data.shards=unused", "loss.lpips_weights=unused", "init_from=unused"]


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 for steps that could not be timed, and as docs/commands.md says."""
    parser = _parser()
    arguments = parse_overrides(parser, argv)
    config = load_config(TrainConfig, arguments.config, UNUSED + arguments.overrides)
    if arguments.measure is not None and arguments.measure > arguments.gpus:
        parser.error(f"--measure {arguments.measure} must lie between 1 and the {arguments.gpus} of --gpus")
    if arguments.figure5:
        if stray := sorted(vars(arguments).get("given", ())):
            parser.error(f"--{stray[0]} means nothing with --figure5; leave it away")
        from trainer.estimate import figure5

        print(figure5.table(config.model))
        return DONE
    options = Options(arguments.device, arguments.share, arguments.bandwidth, arguments.measure)

    from trainer.estimate import memory, prediction
    from trainer.estimate.stopwatch import StopwatchError

    found = memory.estimate(config, arguments.gpus)
    print(memory.table(found, config, arguments.gpus), flush=True)
    try:
        print(prediction.predicted(config, found.trace, arguments.gpus, options))
    except StopwatchError as error:
        print(error, file=sys.stderr)
        complain(parser.prog, "the steps could not be timed; see above")
        return FAILED
    return DONE


def _parser() -> Parser:
    parser = config_parser(TrainConfig, __file__, __doc__)
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


if __name__ == "__main__":
    sys.exit(main())
