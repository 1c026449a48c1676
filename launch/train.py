"""Train VidTwin: `deepspeed launch/train.py --config FILE... key=value...`, or with `python` for a single process.

On a machine without a GPU, `deepspeed --num_gpus 2 launch/train.py ...` starts two CPU ranks. With `--check` nothing is
trained or written: the settings, the data, and the estimates of memory, time and disk are shown.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Sequence

from launch.command_line import config_parser, parse_overrides
from launch.exit_status import DONE, FAILED, REFUSED, complain, described, status_of
from launch.training_places import check_inputs, check_outputs
from trainer.config.loader import changed_keys, load_config
from trainer.config.train import TrainConfig
from trainer.faults import launcher

LATER_S = 5.0  # DeepSpeed's launcher looks once a second for a rank that has ended
GIVE_UP_S = (
    30.0  # between an error and the latest end of its process: breaking off takes 5 s at most, and then `LATER_S`
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Exit status: docs/commands.md. A refusal is one line from each node."""
    command = launcher.find()  # first of all, because a process cannot find its launcher any more once that has ended
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop takes it: Ctrl-C during imports needs no traceback
    parser = config_parser(TrainConfig, __file__, __doc__)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher sends it
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the settings, open the data, and estimate memory, time and disk; write nothing",
    )
    arguments = parse_overrides(parser, argv)
    try:
        config = load_config(TrainConfig, arguments.config, arguments.overrides)
        check_outputs(config)
        check_inputs(config)
    except (ValueError, OSError) as error:
        complain(parser.prog, described(error))
        return status_of(error)
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
    """Train; the exit status. After an error the process must end within `GIVE_UP_S`, and does so by itself."""
    from trainer.autoencoder_builder import AutoencoderBuilder
    from trainer.engine.device import own_device
    from trainer.estimate.out_of_memory import explain_if_out_of_memory
    from trainer.loop import Failed, Stopped
    from trainer.run import Refused, Unready, run

    if command is not None and not command.alive():
        complain(script, "ended before its start, because the deepspeed command has ended")
        return 128 + signal.SIGTERM  # DeepSpeed's launcher, if that is left, ends the other ranks as well
    try:
        config.check_device(own_device(config.device).type)
    except ValueError as error:
        complain(script, error)
        return REFUSED
    if os.environ.get("RANK", "0") == "0":
        _announce(f"{config.output}/config.yaml", changed_keys(config))
    said: list[BaseException] = []

    def say(error: BaseException) -> None:
        if error in said:
            return
        said.append(error)
        if isinstance(error, Refused):
            complain(script, error)
        elif isinstance(error, Unready):
            print(f"{script}: {error}", file=sys.stderr, flush=True)  # of every rank, as only one may have met it
        elif not isinstance(error, Failed):  # which has said why
            print("".join(traceback.format_exception(error)), file=sys.stderr, end="", flush=True)
        last = threading.Timer(GIVE_UP_S, os._exit, (ending(error),))  # should the way out hang
        last.daemon = True
        last.start()
        explain_if_out_of_memory(error, config)

    def ending(error: BaseException) -> int:
        return REFUSED if isinstance(error, Refused | Failed) else FAILED

    try:
        outcome = run(config, AutoencoderBuilder, command, say)
    except Exception as error:  # noqa: BLE001
        say(error)
        if not isinstance(error, Refused | Failed | Unready):
            # Where one rank ends, the others break: whoever started them must see that one's status, not theirs.
            time.sleep(LATER_S)
        return ending(error)
    return config.preempted_status if outcome is Stopped.PREEMPTED else DONE


def _announce(file: str, words: list[str]) -> None:
    """The configuration for people: what is not as it is by default."""
    lines = textwrap.wrap("  ".join(words), 116, break_long_words=False, break_on_hyphens=False)
    print(f"configuration: the defaults, and what follows (all of it will be in {file})", flush=True)
    print("\n".join(f"  {line}" for line in lines), flush=True)


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        ended
    )  # Python's own exit takes NCCL's communicators down, which after an error could wait for other ranks
