"""A stop on request: a signal to any rank stops all ranks after the same step.

A signal sets a flag on the rank that gets it. Before every step the ranks ask each other whether any of them has the
flag. The question travels over gloo on the host while the device still computes the step before, so it does not wait
for the device. A rank asks when it has its batch, and about once a second while it waits for its batch. So all ranks
ask equally often and get the same answers, and the next step begins only when every rank has its batch and none has the
flag.

The end of the single-node `deepspeed` command counts as a signal, because that command passes no signals on. The time
that `max_hours` allows counts as one as well, on each rank by its own clock.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, TextIO, cast

import torch
import torch.distributed as dist

from trainer.faults.launcher import Launcher
from trainer.faults.time_limit import TimeLimit

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class _LossyOutput:
    """An output stream that drops what cannot be written, because its terminal, or a `tee` behind it, has ended.

    An error while printing would end the run before it has saved its state.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StopRequested(Exception):
    """The ranks have agreed to stop. It is raised on every rank."""


class StopRequest:
    """Context in which SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask for a stop instead of ending the process.

    When the context ends without an error, the signals are ignored from then on: the process is about to exit, and a
    repeated signal must not change its exit status. A SIGHUP that is ignored at the beginning, as under nohup, stays
    ignored.

    Args:
        group: gloo group of all ranks.
        launcher: the command that started this rank. Its end asks for a stop too.
        time_limit: asks for a stop when it is near.
    """

    def __init__(self, group: Any, launcher: Launcher | None = None, time_limit: TimeLimit | None = None) -> None:
        self.group, self.time_limit = group, time_limit
        self.reason = ""
        self._previous: dict[int, Any] = {}
        self._launcher = launcher

    def __enter__(self) -> StopRequest:
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
        if number == signal.SIGHUP and not isinstance(sys.stdout, _LossyOutput):
            sys.stdout, sys.stderr = (
                cast(TextIO, _LossyOutput(sys.stdout)),
                cast(TextIO, _LossyOutput(sys.stderr)),
            )

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop. The other ranks may not know of it."""
        if self._launcher is not None and not self._launcher.alive():
            self.reason = self.reason or "end of the deepspeed command"
        if self._out_of_time():
            assert self.time_limit is not None
            self.reason = self.reason or self.time_limit.text
        return bool(self.reason)

    def _out_of_time(self) -> bool:
        return self.time_limit is not None and self.time_limit.near()

    def check(self) -> None:
        """Wait until every rank calls this method. A rank calls it when it has what it needs for its next step.

        Raises:
            StopRequested: some rank was asked to stop; raised on every rank.
        """
        while self._others_wait():
            pass

    def check_waiting(self) -> None:
        """Answer the other ranks. A rank calls this method about once a second while it waits for its batch.

        Raises:
            StopRequested: some rank was asked to stop; raised on every rank.
        """
        self._others_wait(waiting=True)

    def _others_wait(self, waiting: bool = False) -> bool:
        """Ask all ranks once whether any of them still waits for its batch.

        Raises:
            StopRequested: some rank was asked to stop.
        """
        counts = torch.tensor([float(self.stop_requested()), float(waiting), float(self._out_of_time())])
        dist.all_reduce(counts, group=self.group)
        requested, waits, late = counts.tolist()
        if requested:
            limit = self.time_limit.text if late and self.time_limit is not None else ""
            self.reason = self.reason or limit or "a signal to another rank"
            raise StopRequested
        return bool(waits)
