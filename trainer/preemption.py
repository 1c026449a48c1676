"""Told to stop, the ranks agree to: a signal sets a flag here, and every step asks whether any rank has one.

The question travels over gloo on the host while the device computes the step, so it waits for no device. There is a
second way to be told: the single-node `deepspeed` command passes no signals on, so its death counts as one.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preemption:
    """Context in which SIGTERM, SIGINT and SIGUSR1 ask for a stop instead of ending the process.

    A step calls `ask` when its work is queued on the device, and `agreed` when it needs the answer.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.reason = ""
        self._votes = torch.zeros(1)
        self._work: Any = None
        self._previous: dict[int, Any] = {}
        self._launcher = deepspeed_runner()

    def __enter__(self) -> Preemption:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def told(self) -> bool:
        """Whether this rank was told to stop; the others may not know."""
        if self._launcher is not None and not _alive(self._launcher):
            self.reason = self.reason or "end of the deepspeed command"
        return bool(self.reason)

    def ask(self) -> None:
        """Start counting the ranks that were told to stop."""
        self._votes.fill_(1.0 if self.told() else 0.0)
        self._work = dist.all_reduce(self._votes, group=self.group, async_op=True)

    def agreed(self) -> bool:
        """Whether any rank was told to stop when it asked: the same answer on every rank."""
        self._work.wait()
        told = bool(self._votes.item() > 0)
        if told and not self.reason:
            self.reason = "a signal to another rank"
        return told


def deepspeed_runner() -> tuple[int, str] | None:
    """(process id, start time) of the `deepspeed` command above this process's launcher, if it was started by one."""
    try:
        grandparent = int(_stat(os.getppid())[1])
        command = Path(f"/proc/{grandparent}/cmdline").read_bytes().split(b"\0")
        if any(Path(os.fsdecode(word)).name in ("deepspeed", "deepspeed.pt", "ds") for word in command[:3]):
            return grandparent, _stat(grandparent)[19]
    except (OSError, IndexError, ValueError):  # no /proc, or a parent that is already gone
        return None
    return None


def _alive(process: tuple[int, str]) -> bool:
    try:
        state = _stat(process[0])
    except OSError:
        return False
    return state[0] != "Z" and state[19] == process[1]


def _stat(process: int) -> list[str]:
    """Fields of /proc/PID/stat after the command name: state, parent id, ..., start time (19)."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
