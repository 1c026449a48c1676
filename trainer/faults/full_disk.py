"""A disk that is full, or was made read-only, ends a training in one line, whichever file could not be written."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from data_pipeline.store.private_folder import private_folder


def tell(output: str) -> bool:
    """Note for the other ranks of this node that a disk has ended the run; whether no rank has done so before.

    The note lies in the folder for temporary files, since the disk is full, and since the store in which the ranks have
    met may have ended with its rank when the others look.
    """
    try:
        with _note(output).open("x"):
            return True
    except FileExistsError:
        return False
    except (OSError, ValueError):  # that folder is full as well
        return True


def was_told(output: str) -> bool:
    """Whether a rank of this node has told of the disk."""
    try:
        return _note(output).exists()
    except (OSError, ValueError):
        return False


def forget(output: str) -> None:
    """Remove the note. It is told apart from those of other launches by the launcher, whose number may come again."""
    with suppress(OSError, ValueError):
        _note(output).unlink(missing_ok=True)


def _note(output: str) -> Path:
    name = hashlib.sha256(f"{Path(output).absolute()} {os.getppid()}".encode()).hexdigest()[:16]
    return private_folder("full-disk") / name


class ToldElsewhere(RuntimeError):
    """A rank cannot go on because of what another rank has told."""


def of_a_full_disk(error: BaseException) -> bool:
    """Whether a disk that is full, or cannot be written any more, has ended the training."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def said_of_disk(error: BaseException, output: str) -> str:
    """The line for such an error: the file where it is known, and the remedy."""
    if not isinstance(error, OSError):
        return str(error)
    reason = os.strerror(error.errno) if error.errno else str(error)
    return (
        f"{error.filename or f'a file in {output}'}: {reason}; make room, or let the disk be written again: the same "
        "command goes on from the newest checkpoint"
    )
