"""What this process has learned about web hosts: which ones answer, and which ones need not be asked again for a while.

A host that does not exist or accepts no connection costs its first row some seconds, and its further rows nothing.
The memory is bounded, and a host is asked again after some minutes. When a connection fails, hosts that answered before
are asked as well: if none of them can be reached now, the network of this machine is the cause, and no row.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TypeVar

from data_pipeline.source.http_problem import HttpProblem, NoConnection, Place
from data_pipeline.source.trouble import MachineTrouble

_T = TypeVar("_T")
_KEPT = 1024
"""Hosts of each kind that are remembered; the oldest one is forgotten first."""
_ASKED_AGAIN_S = 300.0
"""Seconds after which a host that did not answer is asked again."""
_SILENT_ROWS = 3
"""Downloads in a row without a byte of an answer, after which the host counts as one that does not answer."""
_PROBED = 3
"""Hosts that answered before and are asked when another one cannot be reached."""
_PROBE_S = 5.0
"""Seconds that one of them has for accepting a connection."""
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_NOWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that are reserved for documentation (RFC 5737, RFC 3849). Nothing is sent to them."""
_UNKNOWN_NAME = "probe.invalid"
"""A name that a working resolver answers with "no such name" (RFC 6761, section 6.4)."""


class Hosts:
    """The memory of one process. Several threads may use it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dead: OrderedDict[Place, tuple[HttpProblem, float]] = OrderedDict()  # and until when
        self._answered: OrderedDict[Place, str] = OrderedDict()  # the address that was connected to, the newest last
        self._silent: OrderedDict[Place, int] = OrderedDict()  # downloads in a row without an answer
        self._last_answer: OrderedDict[Place, float] = OrderedDict()  # when the host last answered a request

    def check(self, place: Place) -> None:
        """Raises: HttpProblem, the same one as for the first row, when the host did not answer a short while ago."""
        with self._lock:
            problem, until = self._dead.get(place, (None, 0.0))
            if problem is not None and time.monotonic() >= until:
                del self._dead[place]
                problem = None
        if problem is not None:
            raise HttpProblem(problem.error, str(problem))

    def connected(self, place: Place, address: str) -> None:
        """Note that a host has accepted a connection at an address."""
        with self._lock:
            _remember(self._answered, place, address)

    def answered(self, place: Place) -> None:
        """Note that a host has answered a request."""
        with self._lock:
            self._silent.pop(place, None)
            _remember(self._last_answer, place, time.monotonic())

    def has_answered(self, place: Place) -> bool:
        """Whether the host has accepted a connection of this process before."""
        return place in self._answered

    def silent(self, place: Place, problem: HttpProblem, since: float) -> None:
        """Note that a download got no byte of an answer. One silent file is no silent host.

        Several downloads of a host run at once. Where it has answered another one meanwhile, it is not silent.

        Args:
            since: when the download began, seconds of `time.monotonic`.
        """
        with self._lock:
            if self._last_answer.get(place, -math.inf) >= since:
                return
            times = self._silent.get(place, 0) + 1
            _remember(self._silent, place, times)
        if times >= _SILENT_ROWS:
            self._forget_for_a_while(place, problem)

    def give_up(self, failure: NoConnection, problem: HttpProblem) -> None:
        """Note that no connection to a host is possible.

        Raises:
            MachineTrouble: no other host can be reached either.
        """
        place = failure.place
        if any(isinstance(error, socket.gaierror) for error in failure.errors):
            trouble = self._resolver_fails(place, failure.errors)
        else:
            trouble = self._network_fails(place, failure.errors)
        if trouble:
            raise MachineTrouble(f"{place.host} cannot be reached, and {trouble}") from failure
        self._forget_for_a_while(place, problem)

    def _forget_for_a_while(self, place: Place, problem: HttpProblem) -> None:
        with self._lock:
            self._answered.pop(place, None)
            _remember(self._dead, place, (problem, time.monotonic() + _ASKED_AGAIN_S))

    def _others(self, place: Place) -> list[tuple[Place, str]]:
        with self._lock:
            return [(other, address) for other, address in reversed(self._answered.items()) if other.host != place.host]

    def _resolver_fails(self, place: Place, errors: list[OSError]) -> str:
        names = [other.host for other, _ in self._others(place) if not _is_address(other.host)][:_PROBED]
        if names:
            known = any(_resolver_answer(name) == 0 for name in names)
            return "" if known else f"neither are the names of hosts known that answered before ({names[0]})"
        passing = all(error.errno == socket.EAI_AGAIN for error in errors)
        if passing and _resolver_answer(_UNKNOWN_NAME) == socket.EAI_AGAIN:
            return "no name server answers"
        return ""

    def _network_fails(self, place: Place, errors: list[OSError]) -> str:
        if any(isinstance(error, ConnectionRefusedError) for error in errors):
            return ""  # an answer came over the network
        others = self._others(place)[:_PROBED]
        if others:
            reached = any(_accepts(address, other.port) for other, address in others)
            return "" if reached else f"neither can hosts that answered before ({others[0][0].host})"
        no_route = all(error.errno in _NO_ROUTE for error in errors)
        return "this machine has no route to any host" if no_route and not _has_route() else ""


def _remember(memory: OrderedDict[Place, _T], place: Place, value: _T) -> None:
    memory[place] = value
    memory.move_to_end(place)
    while len(memory) > _KEPT:
        memory.popitem(last=False)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolver_answer(name: str) -> int:
    """0 when a name has an address, else the error number of the resolver."""
    try:
        socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error.errno or socket.EAI_FAIL
    return 0


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_PROBE_S).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)  # the host is up, although its server is not
    return True


def _has_route() -> bool:
    """Whether this machine would send a packet to a public address. A datagram socket is connected without sending."""
    for family, address in _NOWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return True
    return False


HOSTS = Hosts()
"""The memory of this process."""
