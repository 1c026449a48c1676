"""One piece of work in a thread, and what came of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

NICE = 19
"""Niceness of a thread in the background: where every core is busy, the threads of the training run first."""


def lower_priority() -> None:
    """Let the calling thread run only where no other thread of the machine wants the core."""
    if sys.platform == "linux":  # only there setpriority lowers one thread and not the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class Task(Generic[T]):
    """Work that runs in a thread from now on.

    The thread is a daemon, because a process that ends after an error must not wait for it.

    Args:
        work: called once, in the thread.
        name: of the thread, as the stacks of a hang show it.
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._result: list[T] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            lower_priority()
            self._result.append(self._work())
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends the run: the loop asks for it)
            self.error = error

    @property
    def ended(self) -> bool:
        """Whether the work is done, or has failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the work is done or has failed."""
        self._thread.join()

    @property
    def result(self) -> T:
        """What the work returned; only after it has ended without an error."""
        assert self.ended
        assert self.error is None
        return self._result[0]
