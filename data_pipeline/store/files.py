"""Local files: written whole or not at all, flushed to the disk, and digested."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_pipeline.outside.regular import open_regular
from data_pipeline.store.base import StoreError

TEMPORARY = ".tmp-"
"""Name prefix of files that are being written. No listing has them; `LocalStore.remove_leftovers` removes old ones."""


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target`. When the block ends without an error, the file is flushed and renamed to it."""
    with disk_errors(target), temporary_beside(target) as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new file, removed at the end of the block unless the block renamed it.

    The file stays locked as long as its writer lives, so that `remove_leftovers` can recognise a dead writer's file.
    """
    while True:
        path = target.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        with path.open("xb") as file:
            lock_file(file, fcntl.LOCK_EX)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # `remove_leftovers` removed the file before it was locked
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
            return


def lock_file(file: IO[bytes], kind: int) -> bool:
    """Lock a file. Returns False when another process holds the lock.

    On a file system without locks every call returns True.
    """
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    return True


def flush(path: Path) -> None:
    """fsync a file or a folder. Without it a committed name could point at an empty file after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn "no space left" into a StoreError that names `target` and the remedy; name it in other errors of a write."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                error.errno,
                "no space left; nothing partial was kept: free space and run the same command again",
                str(target),
            ) from error
        if error.errno in (errno.EFBIG, errno.EIO) and error.filename is None:
            error.filename = str(target)
        raise


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. The file is read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`. When the block ends without an error, the folder is flushed and renamed to it.

    `target` must not exist or be an empty folder, or a link to one, which stays. Where it is the current folder, the
    files are moved into it one by one, because a shell would stay in the folder that a rename removes. The temporary
    folder of a killed writer of `target` is removed first.
    """
    target = target.resolve()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with disk_errors(target):
            yield partial
            for path in [*partial.rglob("*"), partial]:
                flush(path)
            if target.is_dir() and target.samefile("."):
                _fill(target, partial)
            else:
                partial.replace(target)
            flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(folder: Path, other: Path) -> None:
    """Move all that is in another folder into an empty one."""
    if any(folder.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
    for path in other.iterdir():
        path.replace(folder / path.name)
    flush(folder)
