"""One small interface over a local folder and an `s3://bucket/prefix`; what the pipeline reads or writes goes here.

Keys are relative paths with `/`. On every store a missing key is `FileNotFoundError`, a write is whole or absent, and
`put_if_absent` lets exactly one of several writers win.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

ATTEMPTS = 8
"""Tries for one request, some 17 seconds with the pauses between them."""


class StoreError(OSError):
    """A store that kept failing after every retry. The message names the object and the last failure."""


def pause(failures: int) -> None:
    """Wait before the next try of what has failed that often: 0.2 s at most, then twice as long each time, up to 10 s.

    At random between that and its half, so that ranks that failed together do not come back together.
    """
    time.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**failures))


class Store(ABC):
    """Read, write, list. Instances can be pickled and used from several threads."""

    @abstractmethod
    def uri(self, key: str = "") -> str:
        """The place a person would look for `key`; never holds credentials."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of an object. Raises: FileNotFoundError."""

    @abstractmethod
    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset` (to the end when None). Shorter only where the object ends.

        Raises: FileNotFoundError; StoreError when the store stays unreachable.
        """

    @abstractmethod
    def read_to_file(self, key: str, path: str | Path) -> int:
        """Copy an object to a local file, whole or not at all; returns its bytes."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Replace an object in one step: a reader sees the old bytes or the new, never a part."""

    @abstractmethod
    def write_file(self, key: str, path: str | Path) -> None:
        """As `write`, from a local file, in bounded memory."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless the key exists. True: these bytes are the object now. False: another writer was first."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with `prefix`, in order of the key's bytes within a folder listing."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""

    def exists(self, key: str) -> bool:
        """Whether `key` is there. An unreachable store raises instead of saying no."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def local_path(self, key: str) -> Path | None:
        """The local file that is the object, or None on a store whose objects are no local files."""
        return None

    def remove_leftovers(self, folder: str) -> None:
        """Remove what interrupted writers left half-written in `folder`. A store without such files does nothing."""
        return None


def checked_key(key: str) -> str:
    """The key itself, when it stays inside the store. Raises: ValueError for `..`, an absolute path or a NUL."""
    if not key or key.startswith("/") or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key inside the store; use a relative path without empty or '..' parts")
    return key
