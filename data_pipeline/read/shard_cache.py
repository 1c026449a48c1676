"""Whole shards of a remote dataset in one bounded folder that all ranks and workers of a node share.

The name of a file is the SHA-256 of its bytes. The bytes are checked before the file gets this name, so every file
under such a name is right. Three kinds of `flock` keep processes apart; the kernel releases them when a process dies:

    NAME.lock   exclusive while a process downloads NAME; the length of this file is the room reserved for NAME
    NAME.data   shared while a process reads it. Eviction needs the exclusive lock, so it never removes a file in use
    room.lock   exclusive while a process adds up the folder's bytes, evicts or reserves
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.outside.regular import open_lock, opened_descriptor
from data_pipeline.store.base import Store, StoreError, TooLong, at_most
from data_pipeline.store.files import file_sha256

log = logging.getLogger(__name__)


class CacheFull(OSError):
    """No room can be made, because every file in the cache is being read or downloaded."""


class DigestMismatch(OSError):
    """The store delivered, twice, other bytes than dataset.json says."""


@dataclass(frozen=True)
class CachedObject:
    """An object of the store: its key, its length in bytes and its SHA-256 in hexadecimal."""

    key: str
    bytes: int
    sha256: str


class ShardCache:
    """Local copies of a store's objects. When room is needed, the least recently used copy is evicted first.

    Args:
        store: holds the objects.
        folder: is made when it is missing, for this user only.
        capacity: most bytes in the folder, downloads in progress included.
    Raises:
        ValueError: the folder cannot be made or written by this user; the message names data.cache_dir.
        StoreError: the folder's disk fails.
    """

    def __init__(self, store: Store, folder: Path, capacity: int) -> None:
        self.store = store
        self.folder = folder
        self.capacity = capacity
        try:
            with self._errors_named():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except StoreError as error:
            if isinstance(error.__cause__, PermissionError | FileExistsError | NotADirectoryError):
                raise ValueError(str(error)) from error
            raise
        if folder.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK):
            raise ValueError(f"data.cache_dir={folder} belongs to another user or is read-only; choose another folder")

    def path(self, item: CachedObject) -> Path:
        """The path of the object's local copy."""
        return self.folder / f"{item.sha256}.data"

    @contextmanager
    def open(self, item: CachedObject) -> Iterator[int]:
        """A file descriptor on the whole object, which is downloaded first if needed and not evicted inside the block.

        Raises:
            FileNotFoundError: the store has no such object.
            CacheFull: no room can be made for it.
            DigestMismatch: two downloads did not have the bytes that dataset.json says.
            StoreError: the folder cannot be used (its disk is full, ...), or the store fails.
        """
        while (descriptor := self._copy(item)) is None:
            self.fetch(item)
        try:
            yield descriptor
        finally:
            _release(descriptor)

    def hold(self, item: CachedObject) -> Path:
        """The object's local file, which is not evicted while this process or a forked child of it lives.

        Raises: as `open`.
        """
        with self.open(item), self._errors_named():
            descriptor = opened_descriptor(self.path(item), follow=False)
            # Nothing here releases this lock: a release by a forked child would also release it for the parent.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return self.path(item)

    def fetch(self, item: CachedObject) -> bool:
        """Download the object unless there is a copy. Returns whether this call downloaded it. Raises: as `open`."""
        if item.bytes > self.capacity:
            raise ValueError(
                f"data.cache_bytes={self.capacity} is smaller than {self.store.uri(item.key)} ({item.bytes} bytes); "
                f"set it to {item.bytes} times the shards that a node reads at once, or more"
            )
        with self._errors_named(), _locked(self._lock_path(item)) as lock:
            if self.path(item).exists():
                return False
            try:
                self._reserve(item, lock)
                self._download(item, lock)
            finally:
                os.ftruncate(lock, 0)
            return True

    def discard(self, item: CachedObject) -> None:
        """Remove a local copy that is damaged. A process that has it open goes on reading the old bytes."""
        with self._errors_named(), _locked(self._lock_path(item)):
            self.path(item).unlink(missing_ok=True)

    def _copy(self, item: CachedObject) -> int | None:
        """A descriptor on the local copy, with the lock that prevents its eviction; None without a copy."""
        with self._errors_named():
            try:
                descriptor = opened_descriptor(self.path(item), follow=False)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.fstat(descriptor).st_nlink:  # otherwise it was evicted between opening and locking
                    os.utime(descriptor)
                    return descriptor
            except OSError:
                _release(descriptor)
                raise
            _release(descriptor)
            return None

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Errors of the folder become a StoreError that names the folder and the remedy.

        Errors of a remote store have no errno, or name a file elsewhere; they pass unchanged.
        """
        try:
            yield
        except OSError as error:
            elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(self.folder)
            if error.errno is None or elsewhere:
                raise
            remedy = "choose another folder"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = f"free space there, lower data.cache_bytes={self.capacity}, or {remedy}"
            raise StoreError(
                f"data.cache_dir={self.folder} cannot be used: {os.strerror(error.errno)}; {remedy}"
            ) from error

    def _lock_path(self, item: CachedObject) -> Path:
        return self.folder / f"{item.sha256}.lock"

    def _room(self) -> AbstractContextManager[int]:
        return _locked(self.folder / "room.lock")

    def _reserve(self, item: CachedObject, lock: int) -> None:
        """Evict copies until there is room, and reserve it: the lock file gets the object's length, as a hole."""
        with self._room():
            entries = []
            used = 0
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):
                    if entry.name.endswith(".data"):
                        entries.append((entry.stat().st_mtime_ns, entry.path, entry.stat().st_size))
                        used += entry.stat().st_size
                    elif entry.name.endswith(".lock") and entry.stat().st_size:
                        used += 0 if self._abandoned(Path(entry.path)) else entry.stat().st_size
            for _, path, size in sorted(entries):
                if used + item.bytes <= self.capacity:
                    break
                used -= size if _evict(path) else 0
            if used + item.bytes > self.capacity:
                raise CacheFull(f"data.cache_bytes={self.capacity} is too small for what is read at once; raise it")
            os.ftruncate(lock, item.bytes)

    def _abandoned(self, lock_path: Path) -> bool:
        """Whether the process that made a reservation is dead. If so, the remains of its download are removed."""
        descriptor = open_lock(lock_path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep(lock_path.stem)
            os.ftruncate(descriptor, 0)
            return True
        except BlockingIOError:
            return False
        finally:
            _release(descriptor)

    def _sweep(self, digest: str) -> None:
        incoming = self._incoming(digest)
        if incoming.is_dir():
            for path in incoming.iterdir():
                path.unlink()
            incoming.rmdir()

    def _incoming(self, digest: str) -> Path:
        return self.folder / f"{digest}.incoming"

    def _download(self, item: CachedObject, lock: int) -> None:
        incoming = self._incoming(item.sha256)
        for attempt in (1, 2):
            self._sweep(item.sha256)
            incoming.mkdir()
            try:
                digest = self._fetched(item, incoming / "object")
                if digest == item.sha256:
                    with self._room():  # so that a process that adds up counts the object either reserved or present
                        os.replace(incoming / "object", self.path(item))
                        os.ftruncate(lock, 0)
                    return
            finally:
                self._sweep(item.sha256)
            log.warning("%s: SHA-256 is %s on attempt %d", self.store.uri(item.key), digest, attempt)
        raise DigestMismatch(
            f"{self.store.uri(item.key)}: SHA-256 is {digest}, dataset.json says {item.sha256}; the object was "
            "changed or damaged: run launch/verify_shards.py on the dataset"
        )

    def _fetched(self, item: CachedObject, path: Path) -> str:
        """The SHA-256 of a new copy, or why there is none."""
        try:
            self.store.read_to_file(item.key, path, at_most(item.bytes))
        except TooLong:
            return f"that of more than the {item.bytes} bytes that were written"
        return file_sha256(path)


def _evict(path: str) -> bool:
    """Remove a file unless a process reads it. Returns whether the file no longer exists."""
    try:
        descriptor = opened_descriptor(path, follow=False)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        _release(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = open_lock(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        _release(descriptor)


def _release(descriptor: int) -> None:
    """Unlock and close. A forked child may hold the descriptor, too, and closing alone would leave the lock to it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
