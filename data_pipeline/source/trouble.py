"""Tells the trouble of this machine from the fault of one source: a row is never blamed for a lost mount or network."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from pathlib import Path

from data_pipeline.outside.regular import open_regular

_REMEMBERED = 8
"""Files that could be read before and are looked at when another one is missing."""
MACHINE_ERRORS = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
"""Errors of a file or a folder that say nothing about the file: its disk, its server or this machine fails."""


class MachineTrouble(OSError):
    """This machine cannot work now: its credentials, a mount, its disk or its network fail. No row is at fault."""


class FolderProbe:
    """Watches the folders that videos lie in, and some files that could be read before.

    Args:
        folders: of this machine, absolute: where relative videos start from, and where each source lies. Each may be a
            mount of its own. Others are left out of account, such as "" and addresses.
    """

    def __init__(self, *folders: str) -> None:
        self._folders = [Path(folder) for folder in dict.fromkeys(folders) if folder.startswith("/")]
        self._read: OrderedDict[Path, None] = OrderedDict()

    def worked(self, path: Path) -> None:
        """Remember a file that is there."""
        self._read[path] = None
        self._read.move_to_end(path)
        while len(self._read) > _REMEMBERED:
            self._read.popitem(last=False)

    def check(self, path: Path) -> None:
        """Look around because a file is missing or may not be read.

        Raises:
            MachineTrouble: a folder that the file lies in is gone, empty or closed, or the files that could be read
                before (those of the same folder, or all) are gone as well.
        """
        for folder in filter(path.is_relative_to, self._folders):
            self._check_folder(folder)
        known = [file for file in self._read if file != path]
        beside = [file for file in known if file.parent == path.parent]
        for group in (beside, known):
            if group and not any(_is_there(file) for file in group):
                raise MachineTrouble(f"{group[-1]} could be read before and is gone as well; is its disk mounted?")

    def _check_folder(self, folder: Path) -> None:
        try:
            empty = not any(os.scandir(folder))
        except OSError as error:
            raise MachineTrouble(f"the folder of the sources, {folder}, cannot be read: {error.strerror}") from error
        if empty:
            raise MachineTrouble(f"the folder of the sources, {folder}, is empty; is its disk mounted?")


def _is_there(file: Path) -> bool:
    try:
        file.stat()
    except OSError:
        return False
    return True


def check_readable(path: Path) -> None:
    """Read a whole file, because a decoder has met an error of the system in it.

    Raises:
        MachineTrouble: the disk or the file server fails.
    """
    try:
        with open_regular(path) as file:
            while file.read(1 << 20):
                pass
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise MachineTrouble(f"{path} cannot be read: {error.strerror}") from error
        raise


def names_a_system_error(words: str) -> bool:
    """Whether a decoder's message quotes one of `MACHINE_ERRORS`."""
    return any(os.strerror(number) in words for number in MACHINE_ERRORS)
