"""Train VidTwin: `deepspeed launch/train.py --config FILE... key=value...`, or with `python` for a single process.

On a machine without a GPU, `deepspeed --num_gpus 2 launch/train.py ...` starts two CPU ranks. With `--check` nothing is
trained or written: the settings, the data, and the estimates of memory, time and disk are shown.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial

from data_pipeline.outside.console import guard_consoles
from launch.command_line import parse_overrides
from launch.training_check import check_here
from launch.training_places import check_inputs, check_outputs
from launch.training_process import checked_config, end_process, train_here, training_parser
from trainer.config.train import TrainConfig
from trainer.faults import launcher


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Exit status: docs/commands.md. A refusal is one line from each node."""
    guard_consoles()
    command = launcher.find()  # early, because a process cannot find its launcher any more once that has ended
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop takes it: Ctrl-C during imports needs no traceback
    parser = training_parser(TrainConfig, __file__, __doc__)
    arguments = parse_overrides(parser, argv)
    config = checked_config(parser.prog, arguments, TrainConfig, check_outputs, check_inputs)
    if isinstance(config, int):
        return config
    from trainer.autoencoder_builder import AutoencoderBuilder

    if arguments.check:
        from trainer.estimate.check import checked
        from trainer.estimate.trace import trace

        return check_here(lambda ranks: checked(config, ranks, AutoencoderBuilder, lambda builder: trace), parser.prog)
    from trainer.estimate.out_of_memory import explain_if_out_of_memory

    explain = partial(explain_if_out_of_memory, config=config)
    return train_here(config, AutoencoderBuilder, command, parser.prog, explain)


if __name__ == "__main__":
    end_process(main())
