"""The `deepspeed` command above a rank. It passes no signal on: its end is what a rank sees. Standard library only.

    deepspeed ...                             the command: SIGTERM ends it at once, and nothing below it is told
      python -m deepspeed.launcher.launch     its launcher of one node
        python launch/train.py                the rank

Who looks late sees other parents, because a process whose parent has ended is handed to another. A process that
does not lead its session was born in that of its parent; so a parent in another session is not who started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("deepspeed", "deepspeed.pt", "ds")
RUNNER, LAUNCH = "deepspeed.launcher.runner", "deepspeed.launcher.launch"
PERIOD_S = 1.0
PARENT, SESSION, STARTED = 1, 3, 19  # of /proc/PID/stat, counted from the state


@dataclass(frozen=True)
class Launcher:
    """A process: its number may be used again, its number and time of start are not."""

    process: int
    started: str

    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            state = _stat(self.process)
        except OSError:
            return False
        return state[0] != "Z" and state[STARTED] == self.started


@contextmanager
def ends_with(launcher: Launcher | None) -> Iterator[None]:
    """Inside, the end of the command ends this process: one that waits for ranks which will never come sees nothing."""
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


ENDED = Launcher(0, "")
"""A command that has ended before anyone could look."""


def find() -> Launcher | None:
    """The `deepspeed` command that started this process; None where another program did, ssh's shell among them.

    To be called as early as can be. Where the command has ended before that, the answer is `ENDED`.
    """
    for _ in range(3):
        try:
            return _look()
        except (OSError, IndexError, ValueError):  # a parent that ends at this moment; the next look sees another one
            continue
    return None  # no /proc, or parents outside this container


def _look() -> Launcher | None:
    parent = os.getppid()
    if _adopted(os.getpid()):  # the launcher has ended too
        return ENDED if any(word.startswith("--local_rank=") for word in sys.argv) else None
    grandparent = int(_stat(parent)[PARENT])
    if is_runner(_words(grandparent)):
        return Launcher(grandparent, _stat(grandparent)[STARTED])
    if is_local_launch(_words(parent)) and (_adopted(parent) or _handed_to_init(parent)):
        return ENDED
    return None


def is_runner(words: Sequence[str]) -> bool:
    """Whether a command line is that of the `deepspeed` command, by whichever of its names."""
    return any(Path(word).name in COMMANDS for word in words[:3]) or _module(words) == RUNNER


def is_local_launch(words: Sequence[str]) -> bool:
    """Whether it is that of a launcher below a `deepspeed` command: one that ssh starts is told its node's rank."""
    return _module(words) == LAUNCH and not any(word.startswith("--node_rank") for word in words)


def _module(words: Sequence[str]) -> str:
    """What `python -m` runs."""
    return words[words.index("-m") + 1] if "-m" in words[:-1] else ""


def _adopted(process: int) -> bool:
    """Whether the parent is not who started the process, as far as their sessions tell."""
    stat = _stat(process)
    parent = int(stat[PARENT])
    return int(stat[SESSION]) != process and parent != 0 and _stat(parent)[SESSION] != stat[SESSION]


def _handed_to_init(process: int) -> bool:
    """In a container all processes may share the session of the first; what that starts itself to last leads one."""
    stat = _stat(process)
    return int(stat[PARENT]) == 1 and int(stat[SESSION]) != process


def _words(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")


def _stat(process: int) -> list[str]:
    """Fields of /proc/PID/stat after the command name: state, parent, group, session, ..., start time (19)."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
