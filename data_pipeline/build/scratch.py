"""Folders on a machine's disk for the files of units in work, and the room that downloads may take there."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.outside.regular import open_lock
from data_pipeline.store.private_folder import private_folder

_PREFIX = "vidtwin-unit-"
_LOCK = ".lock"
SOURCE = "source-"
"""What the names of downloads begin with."""
_ROOM = "room-"
"""What the names of empty files begin with that say how many bytes a download in work may still take."""
_LEAST = 1_000_000
"""Bytes of room below which no download is begun ahead of its turn."""


def make_scratch(scratch: str) -> None:
    """Make the folder that `run.scratch` names on this machine, where it names one.

    Raises: ValueError where no such folder can be made.
    """
    if not scratch:
        return
    try:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ValueError(
            f"run.scratch={scratch} cannot be made: {error.strerror}; name a folder of this machine"
        ) from error


@contextmanager
def scratch_folder(parent: str) -> Iterator[Path]:
    """An empty folder for one unit. The folders of processes that were killed are removed first.

    A living process holds a lock on its folder. A lock, unlike a process id, is also seen from another container.
    """
    root = Path(parent) if parent else private_folder("scratch")
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{_PREFIX}*"):
        _remove_if_abandoned(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        try:
            with (folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not os.fstat(lock.fileno()).st_nlink:
                    continue  # removed by another process before it was locked
                yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a folder of this user whose process has ended.

    A shared temporary folder may hold a folder of the same name that another user has made, with anything in it: a
    link, or a pipe in place of the lock, at which opening would wait for ever.
    """
    try:
        lock = open_lock(folder / _LOCK)
    except OSError:
        return  # it belongs to another user, or its process has not locked it yet
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # its process lives
    finally:
        os.close(lock)


class ScratchRoom:
    """How many bytes the downloads of all units on this machine take, and how many more may wait there for their turn.

    What a unit needs next is always fetched: the limit holds back the downloads that would only wait. Processes agree
    through the folders alone: an empty file `room-<random>-<bytes>` stands for a download in work.

    Args:
        folder: of this unit; the folders of others stand beside it.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def used(self) -> int:
        """Bytes of the downloads on this machine, with those that are promised."""
        folders = {self._folder, *self._folder.parent.glob(f"{_PREFIX}*")}
        return sum(map(_used, folders))

    @contextmanager
    def ahead(self) -> Iterator[int]:
        """How many bytes a download may take before its turn: half of what is free, or 0, and it has to wait."""
        promised = (self._limit - self.used()) // 2
        if promised < _LEAST:
            yield 0
            return
        promise = self._folder / f"{_ROOM}{secrets.token_hex(4)}-{promised}"
        promise.touch()
        try:
            yield promised if self.used() <= self._limit else 0  # another process may have done the same meanwhile
        finally:
            promise.unlink(missing_ok=True)


def _used(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError, PermissionError), os.scandir(folder) as files:
        for file in files:
            if file.name.startswith(_ROOM):
                total += int(file.name.rpartition("-")[2])
            elif file.name.startswith(SOURCE):
                with suppress(FileNotFoundError):
                    total += file.stat().st_size
    return total
