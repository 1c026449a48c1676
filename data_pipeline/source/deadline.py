"""The time that one source may take as a whole, from the look-up of its host's name to its last byte."""

from __future__ import annotations

import io
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Overdue(Exception):
    """A source took longer than `sources.deadline_s`."""


@dataclass(frozen=True)
class Deadline:
    """A point of the monotonic clock.

    Args:
        ends: seconds of `time.monotonic`.
        seconds: how long the source had, for the message.
    """

    ends: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline of a source that is begun now."""
        return cls(time.monotonic() + seconds, seconds)

    @property
    def begun(self) -> float:
        """When the source was begun, seconds of `time.monotonic`."""
        return self.ends - self.seconds

    def left(self, at_most: float) -> float:
        """Seconds that are left, `at_most` where more are. Raises: Overdue."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise self.overdue()
        return min(left, at_most)

    def overdue(self) -> Overdue:
        """The error of a source that was too slow."""
        return Overdue(f"took longer than sources.deadline_s={self.seconds:g}")


def within(deadline: Deadline, call: Callable[[], T]) -> T:
    """The result of a call that knows no time limit of its own.

    The call runs in a thread. When the deadline passes first, the thread is left alone, and ends with its process.

    Raises:
        Overdue: the deadline has passed.
        BaseException: what the call raises.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name="within-deadline").start()
    try:
        result, error = answers.get(timeout=deadline.left(threading.TIMEOUT_MAX))
    except queue.Empty:
        raise deadline.overdue() from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


class TimedSocket:
    """The part of a connected socket that `http.client` uses. Each byte is waited for until the deadline at most.

    A server decides how many lines a head, a chunk or a trailer has, and may send one byte at a time. A limit for
    each byte would then never be met, so every read asks how much time is left for the whole.

    Args:
        connected: the socket.
        idle_s: seconds to wait for one byte; may be changed.
        deadline: of the source.
    """

    def __init__(self, connected: socket.socket, idle_s: float, deadline: Deadline) -> None:
        self.connected, self.idle_s, self.deadline = connected, idle_s, deadline

    def sendall(self, data: bytes) -> None:
        """Send all bytes. Raises: TimeoutError, Overdue."""
        self.arm()
        self.connected.sendall(data)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """The bytes that arrive. The socket stays open until this file is closed as well."""
        assert mode == "rb"
        return io.BufferedReader(_Arriving(self, self.connected.makefile("rb", buffering=0)))

    def close(self) -> None:
        """Close the socket, once no file of it is open."""
        self.connected.close()

    def arm(self) -> None:
        """Set how long the next call may wait. Raises: Overdue."""
        self.connected.settimeout(self.deadline.left(self.idle_s))


class _Arriving(io.RawIOBase):
    """What arrives at a timed socket."""

    def __init__(self, timed: TimedSocket, raw: socket.SocketIO) -> None:
        self._timed, self._raw = timed, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        self._timed.arm()
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            self._timed.deadline.left(0.0)  # the deadline or the wait for one byte, whichever was shorter
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()
