"""One small interface over a local folder and an `s3://bucket/prefix`; what the pipeline reads or writes goes here.

Keys are relative paths with `/`. On every store a missing key is `FileNotFoundError`, a write is whole or absent, and
`put_if_absent` lets exactly one of several writers win.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

TEMPORARY = ".tmp-"
"""Prefix of files still being written; never listed, and swept by `LocalStore.sweep`."""
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


def open_store(uri: str | Path, *, attempts: int = ATTEMPTS, timeout_s: float = 30.0) -> Store:
    """The store behind a folder name or `s3://bucket/prefix`. Nothing is contacted or created yet.

    Args:
        uri: a local path, `file:///path` or `s3://bucket/prefix`. `AWS_ENDPOINT_URL` chooses another S3 than Amazon's.
        attempts: tries for one request to a remote store, with growing random pauses between them.
        timeout_s: seconds without a byte before a request to a remote store counts as failed.
    Raises:
        ValueError: another scheme, no bucket, or credentials inside the URI.
    """
    text = str(uri)
    if "://" not in text:
        return LocalStore(Path(text))
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(
            f"a {parts.scheme}:// location must not hold credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(or an AWS profile) in the environment and write the location without them"
        )
    if parts.scheme == "file" and not parts.netloc:
        return LocalStore(Path(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        from data_pipeline.s3_store import S3Store  # boto3 takes 0.3 s to import; local users never need it

        return S3Store(parts.netloc, parts.path.strip("/"), attempts=attempts, timeout_s=timeout_s)
    raise ValueError(f"location {without_secrets(text)!r} is not understood; use a folder or s3://bucket/prefix")


def without_secrets(uri: str) -> str:
    """A location as messages may show it: without the user's name and password, query and fragment."""
    plain = re.split(r"[?#]", uri)[0] if "://" in uri else uri
    return re.sub(r"(?<=://)[^/]*@", "", plain)


def checked_key(key: str) -> str:
    """The key itself, when it stays inside the store. Raises: ValueError for `..`, an absolute path or a NUL."""
    if not key or key.startswith("/") or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key inside the store; use a relative path without empty or '..' parts")
    return key


class LocalStore(Store):
    """A folder. Writes go to a temporary file beside the target, are flushed to the disk, then renamed or linked."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def uri(self, key: str = "") -> str:
        return str(self.path(key)) if key else str(self.root)

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.root / checked_key(key)

    def size(self, key: str) -> int:
        path = self.path(key)
        if path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "is a folder, not an object", str(path))
        return path.stat().st_size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self.path(key).open("rb") as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def read_to_file(self, key: str, path: str | Path) -> int:
        source = self.path(key)
        with atomic_file(Path(path)) as temporary:
            shutil.copyfile(source, temporary)
        return source.stat().st_size

    def write(self, key: str, data: bytes) -> None:
        with atomic_file(self._target(key)) as temporary:
            temporary.write_bytes(data)

    def write_file(self, key: str, path: str | Path) -> None:
        with atomic_file(self._target(key)) as temporary:
            shutil.copyfile(path, temporary)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        target = self._target(key)
        if target.exists():
            return False
        with _disk_errors(target), _temporary_beside(target) as temporary:
            temporary.write_bytes(data)
            flush(temporary)
            try:
                os.link(temporary, target)  # unlike rename, a link never replaces an existing name
            except FileExistsError:
                return False
            flush(target.parent)
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        start = self.root / folder if folder else self.root
        for directory, folders, files in os.walk(start):
            folders.sort()
            relative = Path(directory).relative_to(self.root).as_posix()
            for name in sorted(files):
                key = name if relative == "." else f"{relative}/{name}"
                if key.startswith(prefix) and not name.startswith(TEMPORARY):
                    yield key

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left half-written in `folder`; what is being written stays."""
        for path in (self.root / folder).glob(f"{TEMPORARY}*"):
            with suppress(FileNotFoundError), path.open("rb") as file:
                if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink()

    def _target(self, key: str) -> Path:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name, flushed to the disk, when the block ends well."""
    with _disk_errors(target), _temporary_beside(target) as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """A new file that goes at the end unless it was renamed. Its lock tells `sweep` that its writer lives."""
    while True:
        path = target.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        with path.open("xb") as file:
            _lock(file, fcntl.LOCK_EX)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # swept before it was locked
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(file: IO[bytes], kind: int) -> bool:
    """False when somebody else has the lock. A file system that knows no locks grants all."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    return True


def flush(path: Path) -> None:
    """fsync a file or a folder: after a power cut a committed name must not point at an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                error.errno,
                "no space left; nothing partial was kept: free space and run the same command again",
                str(target),
            ) from error
        raise
