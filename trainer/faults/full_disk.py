"""A disk that is full, or was made read-only, ends a training in one line, whichever file could not be written."""

from __future__ import annotations

import errno
import os

FULL_DISK = "full disk"
"""What the first rank says that meets it. The others break when it leaves, and have nothing to add."""


class ToldElsewhere(RuntimeError):
    """A rank cannot go on because of what another rank has told."""


def of_a_full_disk(error: BaseException) -> bool:
    """Whether a disk that is full, or cannot be written any more, has ended the training. Failing disks say EIO."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
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
