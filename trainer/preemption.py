"""Told to stop, the ranks agree to: a signal sets a flag here, and every step asks whether any rank has one.

The question travels over gloo on the host while the device computes the step, so it waits for no device. There is a
second way to be told: the single-node `deepspeed` command passes no signals on, so its end counts as one.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from trainer.launcher import Launcher

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
OUTPUTS = (1, 2)  # file descriptors


class Preemption:
    """Context in which SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask for a stop instead of ending the process.

    After a good end they are ignored: the process is about to leave with a status, which a repeated signal must not
    change. SIGHUP stays ignored where it is already, as under nohup.

    A step calls `ask` when its work is queued on the device, and `agreed` when it needs the answer.

    Args:
        group: gloo group of all ranks.
        launcher: whose end asks for a stop too.
    """

    def __init__(self, group: Any, launcher: Launcher | None = None) -> None:
        self.group = group
        self.reason = ""
        self._votes = torch.zeros(1)
        self._work: Any = None
        self._previous: dict[int, Any] = {}
        self._launcher = launcher
        self._terminals: list[int] = []

    def __enter__(self) -> Preemption:
        self._terminals = [output for output in OUTPUTS if os.isatty(output)]
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if error is not None else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGHUP:
            self._leave_closed_terminals()

    def _leave_closed_terminals(self) -> None:
        """What is printed from now on goes nowhere: writing to a terminal that is gone would end the run unsaved."""
        for output in self._terminals:
            if not os.isatty(output):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)

    def told(self) -> bool:
        """Whether this rank was told to stop; the others may not know."""
        if self._launcher is not None and not self._launcher.alive():
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
