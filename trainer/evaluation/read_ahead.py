"""Runs an iterator a bounded number of items ahead in a thread, so that decoding overlaps with the networks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_JOIN_S = 0.2
"""Seconds between two attempts to wake the thread that is to end."""


class _End:
    """Marks the end of the iterator; `error` is the exception that ended it, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(
    items: Iterator[T], depth: int, interrupt: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """The same items in the same order. An error is raised in the caller; closing the generator ends the thread.

    Args:
        depth: most items that wait for the caller.
        interrupt: called where the generator is closed before its end, again and again until the thread has ended: it
            frees the thread from what it waits for. The caller sees no more items.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    abandoned = threading.Event()

    def put(item: T | _End) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as raised:  # noqa: BLE001  (raised again in the caller's thread)
            error = raised
        if isinstance(items, Generator):
            items.close()
        put(_End(error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        abandoned.set()
        while thread.is_alive():  # it may wait, or begin to wait again, for a process that does not answer
            interrupt()
            thread.join(_JOIN_S)
