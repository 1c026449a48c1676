"""The death of a data worker as an error that tells the user what to do.

torch notices a dead worker in a handler of SIGCHLD, which raises an error in the main thread. Its text does not tell a
user what to do, and when a pool ends its own workers there must be no error. So torch's handler is wrapped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class WorkerDied(RuntimeError):
    """A data worker died. A handler of SIGCHLD raises this, so in the main thread it can come at any moment."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"a data worker died ({what}). Killed by signal 9 is most often the machine running out of memory: lower "
            "data.workers or data.prefetch, or give the job more memory"
        )


class _DeathHandler:
    """Wraps torch's handler of SIGCHLD."""

    closing = 0  # pools that are ending their workers at this moment

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.closing:
            return
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            raise WorkerDied(str(error).strip()) from error


@contextmanager
def deaths_expected() -> Iterator[None]:
    """Inside the block the death of a worker is no error."""
    _DeathHandler.closing += 1
    try:
        yield
    finally:
        _DeathHandler.closing -= 1


def explain_deaths() -> None:
    """Wrap torch's handler, so that the main thread gets a `WorkerDied` whatever it does when a worker dies."""
    handler = signal.getsignal(signal.SIGCHLD)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and callable(handler) and type(handler) is not _DeathHandler:
        signal.signal(signal.SIGCHLD, _DeathHandler(handler))
