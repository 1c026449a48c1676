"""Train a DiT on latents: `deepspeed launch/train_diffusion.py --config FILE... key=value...`, or with `python`.

    deepspeed launch/train_diffusion.py --config configs/diffusion/small.yaml output=runs/dit data.shards=data/latents

`data.shards` is a dataset that launch/encode_latents.py has made. On a machine without a GPU, `deepspeed --num_gpus 2
launch/train_diffusion.py ...` starts two CPU ranks, and `python` a single process. With `--check` nothing is trained or
written: the settings, the latents, and the estimates of memory, time and disk are shown.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial

from data_pipeline.outside.console import guard_consoles
from launch.command_line import parse_overrides
from launch.training_check import check_here
from launch.training_places import check_latent_inputs, check_outputs
from launch.training_process import checked_config, end_process, train_here, training_parser
from trainer.config.diffusion import DiffusionConfig
from trainer.faults import launcher


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Exit status: docs/commands.md. A refusal is one line from each node."""
    guard_consoles()
    command = launcher.find()  # early, because a process cannot find its launcher any more once that has ended
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop takes it: Ctrl-C during imports needs no traceback
    parser = training_parser(DiffusionConfig, __file__, __doc__)
    arguments = parse_overrides(parser, argv)
    config = checked_config(parser.prog, arguments, DiffusionConfig, check_outputs, check_latent_inputs)
    if isinstance(config, int):
        return config

    from trainer.diffusion.builder import DiffusionBuilder
    from trainer.diffusion.stored_latents import StoredLatents

    builder = partial(DiffusionBuilder, open_data=StoredLatents)
    if arguments.check:
        from trainer.estimate.check import checked
        from trainer.estimate.trace_dit import tracer_of_data

        return check_here(lambda ranks: checked(config, ranks, builder, tracer_of_data), parser.prog)
    from trainer.estimate.out_of_memory import explain_if_out_of_memory
    from trainer.estimate.trace_dit import trace_on_data

    explain = partial(explain_if_out_of_memory, config=config, tracer=trace_on_data)
    return train_here(config, builder, command, parser.prog, explain)


if __name__ == "__main__":
    end_process(main())
