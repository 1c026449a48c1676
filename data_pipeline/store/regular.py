"""Opens regular files only: a pipe or a device in the place of a file would be waited for, or read, for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotRegular(ValueError):
    """A path leads to a folder, a pipe, a socket or a device."""


class Outside(ValueError):
    """A path leads out of the folder that it must stay in."""


def check_file(path: Path, within: Path | None = None, name: str = "") -> os.stat_result:
    """The status of a regular file, links followed. Nothing is opened.

    Args:
        path: of the file.
        within: a folder that the file must lie in after all links are followed; None allows any place.
        name: what messages call the file; empty: its path.
    Raises:
        Outside, NotRegular: naming the file.
        OSError: there is no such file, or its folder cannot be read.
    """
    shown = name or str(path)
    if within is not None and leaves(path, within):
        raise Outside(
            f"{shown} lies outside its folder, which sources.untrusted=true refuses; put the file there itself"
        )
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular(f"{shown} is {_kind(status.st_mode)}, not a file; move it away, or put a file in its place")
    return status


def open_regular(path: Path, name: str = "") -> BinaryIO:
    """A regular file opened for reading. What is none is refused at once, also where it becomes one meanwhile.

    Args:
        name: what messages call the file; empty: its path.
    Raises:
        NotRegular: naming the file.
        OSError: the file cannot be opened.
    """
    check_file(path, name=name)  # opening some devices has an effect
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise NotRegular(f"{name or path} is not a file; put a file in its place")
    return file


def leaves(path: Path, folder: Path) -> bool:
    """Whether a path leads out of a folder once all links of both are followed.

    Raises:
        OSError: the links go round in a circle.
    """
    return not Path(_real(path)).is_relative_to(_real(folder))


def _real(path: Path) -> str:
    """The path without links. A last part that does not exist stays."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
