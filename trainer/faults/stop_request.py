"""A request to stop, on which the ranks agree: a signal sets a flag, and before every step the ranks compare flags.

The question travels over gloo on the host while the device still computes the step before, so it waits for no device.
A rank asks when it has its batch, or about once a second while it waits for it; so all ranks ask equally often, each
answer is the same for all, and the next step begins only when every rank has its batch and no rank was asked to stop.

The end of the single-node `deepspeed` command is a request too, because that command passes no signals on.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class _Unheard:
    """An output whose terminal, or a `tee` in it, may be gone: that must not end the run before it has saved."""

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
    """The ranks have agreed to stop; on every rank."""


class StopRequest:
    """Context in which SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask for a stop instead of ending the process.

    After a good end they are ignored: the process is about to leave with a status, which a repeated signal must not
    change. SIGHUP stays ignored where it is already, as under nohup.

    Args:
        group: gloo group of all ranks.
        launcher: whose end asks for a stop too.
    """

    def __init__(self, group: Any, launcher: Launcher | None = None) -> None:
        self.group = group
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
        if number == signal.SIGHUP and not isinstance(sys.stdout, _Unheard):
            sys.stdout, sys.stderr = cast(TextIO, _Unheard(sys.stdout)), cast(TextIO, _Unheard(sys.stderr))

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop; the others may not know."""
        if self._launcher is not None and not self._launcher.alive():
            self.reason = self.reason or "end of the deepspeed command"
        return bool(self.reason)

    def check(self) -> None:
        """To be called by every rank that has what it needs to go on; returns when all have.

        Raises:
            StopRequested: any rank was asked to stop; then no rank goes on.
        """
        while self._others_wait():
            pass

    def check_waiting(self) -> None:
        """To be called now and then by a rank that lacks what it needs to go on.

        Raises:
            StopRequested: any rank was asked to stop; then no rank goes on.
        """
        self._others_wait(waiting=True)

    def _others_wait(self, waiting: bool = False) -> bool:
        """One question to all ranks: whether any waits; `StopRequested` if any was asked to stop."""
        counts = torch.tensor([float(self.stop_requested()), float(waiting)])
        dist.all_reduce(counts, group=self.group)
        requested, waits = counts.tolist()
        if requested:
            self.reason = self.reason or "a signal to another rank"
            raise StopRequested
        return bool(waits)
