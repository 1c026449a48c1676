"""The directory of a run: writable, and used by one run at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.distributed import Ranks

LOCK = "lock"
# Seconds for an earlier start of the run to let go: a stop on request takes up to 30, and an NFS server keeps the locks
# of a node that vanished for 90.
WAIT = 120.0


class Unwritable(ValueError):
    """The directory cannot be made or written."""


class InUse(RuntimeError):
    """Another run uses the directory."""


@contextmanager
def held(output: Path, ranks: Ranks, say: Callable[[str], None]) -> Iterator[None]:
    """Make `output`, and keep other runs out of it inside. Every rank calls it; the main one locks a file there.

    The lock is the kernel's (`flock`), so it ends with the process, however that ends, and its children; a run that was
    just told to stop is waited for. A directory that was made here goes again where nothing came into it.

    Args:
        output: a run's.
        ranks: of the run.
        say: told that something is waited for.
    Raises:
        Unwritable: on every rank.
        InUse: another run holds it; on every rank.
    """
    refused: tuple[type[Exception], str] | None = None
    new, handle = not output.exists(), None
    if ranks.is_main:
        try:
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
            if new and [path.name for path in output.iterdir()] == [LOCK]:
                (output / LOCK).unlink()
                output.rmdir()
            os.close(handle)


def _locked(output: Path, say: Callable[[str], None]) -> int:
    """Take the lock and sign it; its file, open.

    Raises:
        InUse: another process keeps it.
        OSError: the file cannot be made.
    """
    until, waiting = time.monotonic() + WAIT, False
    while True:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(output / LOCK) and os.path.samestat(os.fstat(handle), os.stat(output / LOCK)):
                break  # and not one that its holder has just removed
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
