"""Train VidTwin: `deepspeed launch/train.py --config FILE... key=value...`, or with `python` for a single process.

On a machine without a GPU, `deepspeed --num_gpus 2 launch/train.py ...` starts two CPU ranks.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import time
import traceback

from launch.command_line import config_parser, parse_overrides
from trainer.config.loader import changed_keys, load_config
from trainer.faults import launcher

LATER_S = 5.0  # DeepSpeed's launcher looks once a second for a rank that has ended


def main() -> int:
    """Train.

    Exit status: 0 finished, `preempted_status` stopped on request, 1 may succeed if started again, 2 will not, 70 hung
    (trainer/faults/watchdog.py).
    """
    command = launcher.find()  # before anything that takes long: whose parent has ended meanwhile cannot tell any more
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop takes it: Ctrl-C during imports needs no traceback
    from trainer.config.train import TrainConfig

    parser = config_parser(TrainConfig, "Train VidTwin on shards made by launch/build_shards.py.")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher sends it
    arguments = parse_overrides(parser)
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = load_config(TrainConfig, arguments.config, arguments.overrides)
    except ValueError as error:
        return _refuse(error) if rank == 0 else 2
    from trainer.autoencoder_builder import AutoencoderBuilder
    from trainer.loop import Failed, Stopped
    from trainer.run import Refused, Unready, run

    if command is not None and not command.alive():
        return _orphaned()
    if rank == 0:
        _announce(f"{config.output}/config.yaml", changed_keys(config))
    try:
        outcome = run(config, AutoencoderBuilder, command)
    except Refused as error:
        # One line from each node, because what one node refuses (a missing dataset) another may not.
        return _refuse(error) if os.environ.get("LOCAL_RANK", "0") == "0" else 2
    except Unready as error:
        print(f"launch/train.py: {error}", file=sys.stderr)
        return 1  # may be started again
    except Failed:
        return 2  # it has said why
    except Exception as error:
        # Where one rank ends, the others break: whoever started them must see that one's status, not theirs.
        traceback.print_exc()
        time.sleep(LATER_S)
        raise SystemExit(1) from error
    return config.preempted_status if outcome is Stopped.PREEMPTED else 0


def _announce(file: str, words: list[str]) -> None:
    """The configuration for people: what is not as it is by default."""
    lines = textwrap.wrap("  ".join(words), 116, break_long_words=False, break_on_hyphens=False)
    print(f"configuration: the defaults, and what follows (all of it will be in {file})", flush=True)
    print("\n".join(f"  {line}" for line in lines), flush=True)


def _orphaned() -> int:
    """The status makes DeepSpeed's launcher, if that is left, end the other ranks as well."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("launch/train.py: ended before its start, because the deepspeed command has ended", file=sys.stderr)
    return 128 + signal.SIGTERM


def _refuse(error: ValueError) -> int:
    print(f"launch/train.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
