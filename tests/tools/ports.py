"""A port for a server that wants to be told one."""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 20_000  # Ray gives its workers 10002 to 19999


def free_port(neighbour: int = 0) -> int:
    """A TCP port that nobody has, and that the kernel gives to nobody who lets it choose.

    The server takes it seconds later. Until then other tests of the same run start listeners and connections by the
    hundred, and the kernel would have given one of them a port of its own choice again.

    Args:
        neighbour: the port so much higher is wanted as well.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - neighbour
    for _ in range(1000):
        port = random.SystemRandom().randrange(FIRST, end) if end > FIRST else _of_the_kernels()
        if all(map(_is_free, {port, port + neighbour})):
            return port
    raise AssertionError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except (OSError, OverflowError):
            return False
    return True


def _of_the_kernels() -> int:
    """Where the kernel chooses from all ports, there is nothing better."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
