"""One process of a training, whatever is trained: its words, its first lines, the training, its exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from launch.command_line import Parser, config_parser
from launch.exit_status import DONE, REFUSED, complain, described, status_of
from launch.training_errors import ErrorReport, status_of_training
from trainer.config.loader import changed_keys, load_config
from trainer.config.run import RunConfig
from trainer.faults import launcher

if TYPE_CHECKING:
    from trainer.distributed import Ranks
    from trainer.method import B, MethodBuilder
    from trainer.run import C

R = TypeVar("R", bound=RunConfig)
LATER_S = 5.0  # DeepSpeed's launcher looks once a second for a rank that has ended


def training_parser(cls: type[RunConfig], file: str, description: str | None) -> Parser:
    """The parser of a training with the settings `cls`; the file and the description are the script's."""
    parser = config_parser(cls, file, description)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher sends it
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the settings, open the data, and estimate memory, time and disk; write nothing",
    )
    return parser


def checked_config(script: str, arguments: argparse.Namespace, cls: type[R], *checks: Callable[[R], None]) -> R | int:
    """The settings of a training, whose places were looked at; the exit status where one line has refused something.

    Args:
        script: how messages begin.
        arguments: from `parse_overrides`.
        cls: of the settings.
        checks: of the settings, which raise ValueError or OSError.
    """
    try:
        config = load_config(cls, arguments.config, arguments.overrides)
        for check in checks:
            check(config)
    except (ValueError, OSError) as error:
        complain(script, described(error))
        return status_of(error)
    return config


def end_process(status: int) -> NoReturn:
    """End without Python's own exit, which takes NCCL's communicators down and could wait for ranks that failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def train_here(
    config: C,
    builder: Callable[[C, Ranks], MethodBuilder[B]],
    command: launcher.Launcher | None,
    script: str,
    explain: Callable[[BaseException], None] = lambda error: None,
) -> int:
    """Train. After an error the process ends within `training_errors.GIVE_UP_S`, by itself.

    Args:
        config: the method's own configuration.
        builder: makes the method's builder (see `trainer.run.run`).
        command: the `deepspeed` command, if there is one.
        script: how messages begin.
        explain: may say more of an error.
    Returns:
        The exit status.
    """
    from trainer.engine.device import own_device
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
        _announce(config)
    report = ErrorReport(script, config.output, explain)
    try:
        outcome = run(config, builder, command, report)
    except Exception as error:  # noqa: BLE001
        report(error)
        if not isinstance(error, Refused | Failed | Unready):
            # When one rank ends, the others break too. Whoever started the ranks must see the status of the first one.
            time.sleep(LATER_S)
        return status_of_training(error)
    return config.preempted_status if outcome is Stopped.PREEMPTED else DONE


def _announce(config: RunConfig) -> None:
    """The configuration for people: what is not as it is by default."""
    lines = textwrap.wrap("  ".join(changed_keys(config)), 116, break_long_words=False, break_on_hyphens=False)
    file = f"{config.output}/config.yaml"
    print(f"configuration: the defaults, and what follows (all of it will be in {file})", flush=True)
    print("\n".join(f"  {line}" for line in lines), flush=True)
