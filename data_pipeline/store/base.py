"""One small interface over a local folder and an `s3://bucket/prefix`. The pipeline keeps all its data in one.

A key is a relative path with `/`. On every store a missing key raises `FileNotFoundError`, a write appears whole or not
at all, and `put_if_absent` lets exactly one of several writers win.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ATTEMPTS = 8
"""Default number of tries for one request: with the pauses between the tries they last some 17 seconds."""


class StoreError(OSError):
    """A store failed on every try. The message names the object and the last failure."""


class RequestRefused(StoreError):
    """A store refuses one request as wrong in itself: its bucket, its key or a parameter. Another try never helps."""


class CredentialsRefused(PermissionError):
    """A machine has no credentials for a store, or the store takes them for wrong or expired: no request succeeds."""


class NotConfigured(ValueError):
    """The settings of a machine for a store, such as the region, are missing or wrong: no request is possible."""


@dataclass(frozen=True)
class Retries:
    """How long a request to a remote store is tried before it counts as failed."""

    attempts: int = ATTEMPTS  # tries for one request, with growing random pauses between them
    timeout_s: float = 30.0  # seconds without a byte after which one try counts as failed


DEFAULT_RETRIES = Retries()


def pause_seconds(failures: int) -> float:
    """Seconds to wait after `failures` failures in a row, drawn at random from the upper half of a growing range.

    The range ends at 0.2 s after the first failure and doubles with each further one, up to 10 s. The pause is random
    because ranks that fail together would otherwise all send their next request at the same moment.
    """
    return random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2 ** min(failures, 7))


def pause(failures: int) -> None:
    """Sleep for `pause_seconds(failures)`."""
    time.sleep(pause_seconds(failures))


class Store(ABC):
    """Reads, writes and lists objects. A store can be pickled, and several threads may use it at once."""

    @abstractmethod
    def uri(self, key: str = "") -> str:
        """The address of `key`, or of the whole store, as messages show it. It never contains credentials."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Length of an object in bytes. Raises: FileNotFoundError."""

    @abstractmethod
    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset`, or all bytes from there when `length` is None. Shorter where the object ends.

        Raises: FileNotFoundError; StoreError when every try failed.
        """

    @abstractmethod
    def read_to_file(self, key: str, path: str | Path, arrived: Callable[[int], None] = lambda total: None) -> int:
        """Copy an object to a local file, whole or not at all, and return its length in bytes.

        Args:
            key: of the object.
            path: of the file.
            arrived: is told after each piece how many bytes have come, and ends the copy by raising something.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Replace an object in one step: a reader sees either all old bytes or all new bytes."""

    @abstractmethod
    def write_file(self, key: str, path: str | Path) -> None:
        """Replace an object by the bytes of a local file, like `write` but in bounded memory."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless its key exists.

        Returns: True when the object now holds these bytes; False when another writer was first.
        """

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys that start with `prefix`. Within one folder the keys come in the order of their bytes."""

    @abstractmethod
    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """`keys`, each with the object's length in bytes. A remote store has both in one listing."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object. A missing object is no error."""

    def exists(self, key: str) -> bool:
        """Whether the store has an object `key`. An unreachable store raises an error instead of answering False."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def local_path(self, key: str) -> Path | None:
        """The local file that is the object, or None on a store whose objects are no local files."""
        return None

    def remove_leftovers(self, folder: str, *, alone: bool = False) -> None:
        """Remove what interrupted writers left half-written in `folder`, as far as the store lets it be removed.

        Args:
            folder: "" for the whole store.
            alone: nobody else writes into the folder now, so that what is half-written there belongs to nobody. A
                store that cannot tell a dead writer from a living one otherwise waits a day.
        """
        return None


class TooLong(ValueError):
    """A store has more bytes of an object than were written."""


def at_most(size: int) -> Callable[[int], None]:
    """For `Store.read_to_file`: ends a copy that grows beyond what was written, since a store may send without an end.

    Args:
        size: bytes of the object by the record of who wrote it.
    """

    def check(total: int) -> None:
        if total > size:
            raise TooLong(f"has more than the {size} bytes that were written")

    return check


def checked_key(key: str) -> str:
    """The key unchanged. Raises: ValueError when it would leave the store: `..`, an absolute path or a NUL."""
    if not key or key.startswith("/") or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key inside the store; use a relative path without empty or '..' parts")
    return key
