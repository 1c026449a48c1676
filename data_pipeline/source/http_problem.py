"""How a download fails: for good, or so that another try may succeed."""

from __future__ import annotations

import socket
from dataclasses import dataclass


class HttpProblem(Exception):
    """A download was given up. `error` is a stable slug. The message never contains the query of a URL."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class TryAgain(Exception):
    """A failure that another try may not meet.

    Args:
        reason: for people.
        wait_s: seconds that the server asks to wait before the next try.
    """

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Place:
    """Where a connection goes."""

    scheme: str  # http or https
    host: str  # name or address
    port: int


class Silent(TryAgain):
    """The server at `place` accepted the connection, and sent no byte of an answer in time."""

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(reason)
        self.place = place


class NoConnection(TryAgain):
    """No connection to a place was possible.

    Args:
        place: where to.
        reason: for people; the same text on every machine.
        errors: what the resolver or the tried addresses answered.
    """

    def __init__(self, place: Place, reason: str, errors: list[OSError]) -> None:
        super().__init__(reason)
        self.place, self.errors = place, errors

    @property
    def may_pass(self) -> bool:
        """Whether only the resolver failed, which may be a matter of seconds."""
        return all(isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN for error in self.errors)
