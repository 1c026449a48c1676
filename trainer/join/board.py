"""Messages in the store in which the processes of a launch meet, and how the store is opened and found."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PROBE_S = 5.0  # for a connection to be made
ANSWER_S = 10.0  # for a store to answer a new client, and for a process that has been asked something simple
PAUSES = (0.02, 1.0)  # seconds between two looks: the first pause, each next one half as long again, and the longest


class Board:
    """Values that are written as JSON, under a prefix of their own in a store."""

    def __init__(self, store: dist.Store, prefix: str) -> None:
        self._store = dist.PrefixStore(prefix, store)

    def put(self, key: str, value: Any) -> None:
        """Write, over what was there."""
        self._store.set(key, json.dumps(value))

    def read(self, key: str) -> Any:
        """The value; None where nothing was written."""
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def claim(self, key: str, name: str) -> str:
        """Write the name where nothing was written; the name that stands there now."""
        return bytes(self._store.compare_set(key, "", name)).decode()

    def holder(self, key: str) -> str:
        """The name that stands there; empty for none."""
        return bytes(self._store.get(key)).decode() if self._store.check([key]) else ""

    def release(self, key: str) -> None:
        """Take a name away."""
        self._store.delete_key(key)

    def add(self, key: str, number: int) -> int:
        """Add to a counter, which begins at 0; what it is then."""
        return int(self._store.add(key, number))

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of them were written."""
        return bool(self._store.check(list(keys)))

    def wait(self, keys: Sequence[str], until: float, meanwhile: Callable[[], bool] = lambda: True) -> bool:
        """Look again and again until all keys are written. The store's own `wait` prints stacks when it gives up.

        Args:
            until: of `time.monotonic`; then it gives up.
            meanwhile: called between two looks; False gives up, too.
        Returns:
            Whether all keys are written.
        """
        return wait(lambda: self.has(keys), until, meanwhile)


def wait(condition: Callable[[], bool], until: float, meanwhile: Callable[[], bool] = lambda: True) -> bool:
    """Look again and again, ever more seldom. Arguments and result: see `Board.wait`."""
    pause, longest = PAUSES
    while not condition():
        if not meanwhile() or time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(1.5 * pause, longest)
    return True


def opened(port: int, timeout: timedelta) -> dist.TCPStore:
    """A store that other machines find at this port.

    Args:
        timeout: after which a call of the store gives up, once the process group uses it.
    Raises:
        OSError: the port is in use, or may not be used.
    """
    dual = socket.has_dualstack_ipv6()
    listener = socket.create_server(
        ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=1024
    )
    return dist.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )


def found(address: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """A connection to the store of another process.

    Torch's own attempts print stacks while nobody listens, and last for ever where a program listens that is no
    store. So a plain connection is tried first, and the attempt is left alone after `ANSWER_S`.

    Raises:
        OSError: nobody listens there, or what listens does not answer as a store does.
    """
    socket.create_connection((address, port), PROBE_S).close()
    stores: list[dist.TCPStore] = []

    def attempt() -> None:
        try:
            short = timedelta(seconds=ANSWER_S)
            store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=short)
        except RuntimeError:  # the store has closed meanwhile
            return
        store.set_timeout(timeout)
        stores.append(store)

    thread = threading.Thread(target=attempt, name="store", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not stores:
        raise ConnectionError("a program listens there that is no store of a run")
    return stores[0]
