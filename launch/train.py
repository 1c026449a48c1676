"""Train VidTwin: `deepspeed launch/train.py --config FILE... key=value...`, or with `python` for a single process.

On a machine without a GPU, `deepspeed --num_gpus 2 launch/train.py ...` starts two CPU ranks. With `--check` nothing is
trained or written: the settings, the data, and the estimates of memory, time and disk are shown.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial

from launch.command_line import parse_overrides
from launch.exit_status import DONE, complain, described, status_of
from launch.training_places import check_inputs, check_outputs
from launch.training_process import checked_config, end_process, train_here, training_parser
from trainer.config.train import TrainConfig
from trainer.faults import launcher


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Exit status: docs/commands.md. A refusal is one line from each node."""
    command = launcher.find()  # first of all, because a process cannot find its launcher any more once that has ended
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop takes it: Ctrl-C during imports needs no traceback
    parser = training_parser(TrainConfig, __file__, __doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the settings, open the data, and estimate memory, time and disk; write nothing",
    )
    arguments = parse_overrides(parser, argv)
    config = checked_config(parser.prog, arguments, TrainConfig, check_outputs, check_inputs)
    if isinstance(config, int):
        return config
    if arguments.check:
        return _check(config, parser.prog)
    return _train(config, command, parser.prog)


def _check(config: TrainConfig, script: str) -> int:
    """Print what a training would need, without starting it; of several ranks only the first one does so."""
    if os.environ.get("RANK", "0") != "0":
        return DONE
    from trainer.estimate.check import checked

    try:
        lines = checked(config, int(os.environ.get("WORLD_SIZE", "1")))
    except (ValueError, OSError) as error:
        complain(script, described(error))
        return status_of(error)
    print("\n".join(lines))
    return DONE


def _train(config: TrainConfig, command: launcher.Launcher | None, script: str) -> int:
    """Train; the exit status."""
    from trainer.autoencoder_builder import AutoencoderBuilder
    from trainer.estimate.out_of_memory import explain_if_out_of_memory

    return train_here(config, AutoencoderBuilder, command, script, partial(explain_if_out_of_memory, config=config))


if __name__ == "__main__":
    end_process(main())
