"""Requests to stop a script, as errors that its own code can clean up after."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit, so that files in work are removed; an ignored one stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    changed = {}
    main_thread = threading.current_thread() is threading.main_thread()  # only this one may set handlers
    for number in (signal.SIGTERM, signal.SIGHUP):
        if main_thread and signal.getsignal(number) is signal.SIG_DFL:
            changed[number] = signal.signal(number, stop)
    try:
        yield
    except RuntimeError as error:  # Python wraps what a signal raises while a class is made
        if isinstance(error.__cause__, SystemExit | KeyboardInterrupt):
            raise error.__cause__ from None
        raise
    finally:
        for number, before in changed.items():
            signal.signal(number, before)
