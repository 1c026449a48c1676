"""A run's output directory: it must be writable, and only one run may use it at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.outside.regular import NotRegular
from trainer.distributed import Ranks

LOCK = "lock"
# Seconds to wait for an earlier start of the run to release the lock. A stop on request takes up to 30 s, and an NFS
# server keeps the locks of a node that vanished for 90 s.
WAIT = 120.0


class Unwritable(ValueError):
    """The output directory cannot be created or written."""


class InUse(RuntimeError):
    """Another run uses the output directory."""


@contextmanager
def held(output: Path, ranks: Ranks, say: Callable[[str], None]) -> Iterator[None]:
    """Context in which no other run uses `output`, which is created. Every rank calls it; the main rank locks a file.

    The lock is the kernel's (`flock`), so it ends with the process and its children, however they end. If another run
    holds the lock, this one waits up to `WAIT` seconds, because the other may just be stopping. If the run
    wrote nothing into the directory, the lock and the directories that this call created are removed at the end.

    Args:
        output: the run's output directory.
        ranks: of the run.
        say: prints a line.
    Raises:
        Unwritable: the directory cannot be created or written; raised on every rank.
        InUse: another run keeps the lock; raised on every rank.
    """
    refused: tuple[type[Exception], str] | None = None
    new: list[Path] = []
    names: set[str] = set()
    handle = None
    if ranks.is_main:
        try:
            new, names = _missing(output), _names(output)
            handle = _locked(output, say)
        except InUse as error:
            refused = InUse, str(error)
        except OSError as error:
            refused = Unwritable, f"output={output} cannot be written ({error.strerror}); choose another output"
    try:
        refused = ranks.broadcast(refused)
        if refused is not None:
            raise refused[0](refused[1])
        yield
    finally:
        if handle is not None:
            if _names(output) == names | {LOCK} and LOCK not in names:
                (output / LOCK).unlink()
                with suppress(OSError):  # another run has made a directory of its own there
                    for folder in new:
                        folder.rmdir()
            os.close(handle)


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, the lowest first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _names(folder: Path) -> set[str]:
    """What lies in a folder; nothing where there is no folder."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _locked(output: Path, say: Callable[[str], None]) -> int:
    """Lock the file and write this process's number and host into it. Returns the open file's descriptor.

    Raises:
        InUse: another process keeps the lock.
        OSError: the file cannot be created.
    """
    until, waiting = time.monotonic() + WAIT, False
    while True:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output / LOCK, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise NotRegular(errno.EINVAL, f"{output / LOCK} is no regular file: remove it", str(output / LOCK))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(output / LOCK) and os.path.samestat(os.fstat(handle), os.stat(output / LOCK)):
                break  # else the last holder has removed this file, and another process may lock a new one
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            if time.monotonic() > until:
                os.close(handle)
                raise InUse(
                    f"output={output} is in use by {holder}; choose another output, or stop that run: the same "
                    "command then goes on from its checkpoint"
                ) from None
            if not waiting:
                say(f"waiting up to {WAIT:.0f} s for {holder}, which still uses {output}")
            waiting = True
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            say(f"warning: {output} is on storage without locks; see to it that one run at a time uses it")
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle
