"""The `deepspeed` command that started a rank, and whether it still runs.

    deepspeed ...                             the command; SIGTERM ends it at once, and it passes no signal on
      python -m deepspeed.launcher.launch     its launcher on one node
        python launch/train.py                the rank

Because the command passes no signal on, a rank learns of a stop only by the command's end. So the rank must know which
process the command is, and it finds it as the parent of its parent.

The parents may change before the rank looks: the kernel gives a process whose parent has ended to another parent. The
rank recognises such a new parent by its session. A process belongs to the session of the process that started it,
unless it leads a session of its own. So if a process leads no session and its parent belongs to another session, that
parent did not start it. This file uses the standard library only, so that a rank can look before its slow imports.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("deepspeed", "deepspeed.pt", "ds")
RUNNER, LAUNCH = "deepspeed.launcher.runner", "deepspeed.launcher.launch"
PERIOD_S = 1.0
ENDING_S = 5.0
"""How long a parent may take to end. Meanwhile it has no command line any more, and is still the parent."""
PARENT, SESSION, STARTED = 1, 3, 19  # positions in `_stat`: fields of /proc/PID/stat, counted from the state


@dataclass(frozen=True)
class Launcher:
    """A process. Its number alone may be used again for another process; its number and start time together are not."""

    process: int
    started: str  # in clock ticks since the machine started, as /proc/PID/stat has it

    def alive(self) -> bool:
        """Whether the process still runs."""
        try:
            state = _stat(self.process)
        except OSError:
            return False
        return state[0] != "Z" and state[STARTED] == self.started


@contextmanager
def ends_with(launcher: Launcher | None) -> Iterator[None]:
    """Context in which the end of the command ends this process within `PERIOD_S`.

    It is for the time in which a rank waits for the other ranks to join, because then it can look at nothing else and
    would wait for ranks that never come.
    """
    left = threading.Event()

    def watch() -> None:
        while launcher is not None and not left.wait(PERIOD_S):
            if not launcher.alive() and not left.is_set():
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
    try:
        yield
    finally:
        left.set()


class Ending(Exception):
    """A process is about to end, or has ended and nobody has asked for its status yet: it has no command line."""


ENDED = Launcher(0, "")
"""Stands for a command that ended before `find` looked for it."""


def find() -> Launcher | None:
    """The `deepspeed` command that started this process.

    It is None where another program started the process, for instance ssh's shell on another node. It is `ENDED` where
    the command has ended before this call. Call this function as early as possible, while the parents still run.
    """
    failures, until = 0, time.monotonic() + ENDING_S
    while failures < 3 and time.monotonic() < until:
        try:
            return _find()
        except Ending:
            time.sleep(0.01)
        except (OSError, IndexError, ValueError):  # a parent has just ended; the next try sees the new parent
            failures += 1
    return None  # there is no /proc, the parents are outside this container, or one of them hides its command line


def _find() -> Launcher | None:
    parent = os.getppid()
    if _adopted(os.getpid()):  # then the launcher has ended too; only a launcher gives --local_rank
        return ENDED if any(argument.startswith("--local_rank=") for argument in sys.argv) else None
    grandparent = int(_stat(parent)[PARENT])
    if is_runner(_command_line(grandparent)):
        return Launcher(grandparent, _stat(grandparent)[STARTED])
    if is_local_launch(_command_line(parent)) and (_adopted(parent) or _handed_to_init(parent)):
        return ENDED
    return None


def is_runner(command_line: Sequence[str]) -> bool:
    """Whether a command line is that of the `deepspeed` command, under any of its names."""
    return any(Path(argument).name in COMMANDS for argument in command_line[:3]) or _module(command_line) == RUNNER


def is_local_launch(command_line: Sequence[str]) -> bool:
    """Whether a command line is that of a launcher whose `deepspeed` command runs on the same node.

    A launcher that ssh starts on another node has the argument --node_rank.
    """
    remote = any(argument.startswith("--node_rank") for argument in command_line)
    return _module(command_line) == LAUNCH and not remote


def _module(command_line: Sequence[str]) -> str:
    """The module that `python -m` runs; empty for another command line."""
    return command_line[command_line.index("-m") + 1] if "-m" in command_line[:-1] else ""


def _adopted(process: int) -> bool:
    """Whether the sessions show that the process has got a new parent, because the one that started it has ended."""
    stat = _stat(process)
    parent = int(stat[PARENT])
    return int(stat[SESSION]) != process and parent != 0 and _stat(parent)[SESSION] != stat[SESSION]


def _handed_to_init(process: int) -> bool:
    """Whether process 1 became the parent of a process that it did not start.

    In a container all processes may share the session of process 1, so `_adopted` sees nothing. But a process that
    process 1 starts itself and that lives long leads a session of its own.
    """
    stat = _stat(process)
    return int(stat[PARENT]) == 1 and int(stat[SESSION]) != process


def _command_line(process: int) -> list[str]:
    """Raises: Ending."""
    line = Path(f"/proc/{process}/cmdline").read_bytes()
    if not line:
        raise Ending
    return line.decode(errors="replace").split("\0")


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name: state, parent, group, session, ..., start time (19)."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
