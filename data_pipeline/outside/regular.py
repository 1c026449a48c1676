"""Files from outside are opened only if they are regular: a FIFO, a device or a socket may block, or never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegular(OSError):
    """A path names something that is not a regular file. It was not read."""


class Outside(ValueError):
    """A path leads out of the folder that it must stay in."""


def open_regular(path: str | os.PathLike[str], *, follow: bool = True, named: str = "") -> BufferedReader:
    """Open a file for reading in binary mode, without waiting for anybody.

    The kind is looked at before the file is opened, because opening a device can change it, and once more afterwards,
    because somebody may have replaced the file in between.

    Args:
        path: of the file.
        follow: whether the path's last part may be a link.
        named: what messages call the file; empty: its path.
    Raises:
        NotRegular: it is a FIFO, a device or a socket, or a link where none may be.
        IsADirectoryError: it is a folder.
        OSError: it cannot be opened.
    """
    return os.fdopen(opened_descriptor(path, follow=follow, named=named), "rb")


def opened_descriptor(path: str | os.PathLike[str], *, follow: bool = True, named: str = "") -> int:
    """Open a file as `open_regular` does, but return its descriptor, which the caller closes."""
    check_regular(path, follow=follow, named=named)
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    )
    try:
        _check_mode(os.fstat(descriptor).st_mode, named or path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(
    path: str | os.PathLike[str], *, follow: bool = True, within: Path | None = None, named: str = ""
) -> os.stat_result:
    """Refuse a path that a library must not open by its name; otherwise return the status of the file.

    Nothing is opened.

    Args:
        path: of the file.
        follow: whether the path's last part may be a link.
        within: a folder that the file must lie in after all links are followed; None allows any place.
        named: what messages call the file; empty: its path.
    Raises:
        Outside: it lies elsewhere.
        OSError: as `open_regular`.
    """
    if within is not None and leaves(path, within):
        raise Outside(f"{named or path} lies outside its folder, which sources.untrusted=true refuses")
    status = os.stat(path, follow_symlinks=follow)
    _check_mode(status.st_mode, named or path)
    return status


def leaves(path: str | os.PathLike[str], folder: Path) -> bool:
    """Whether a path leads out of a folder once all links of both are followed.

    Raises:
        OSError: the links go round in a circle.
    """
    return not Path(_real(path)).is_relative_to(_real(folder))


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a regular file.

    Args:
        path: of the file.
        most: the most bytes that a file of this sort may have.
    Raises:
        ValueError: it has more bytes.
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} has more than the {most} bytes that such a file may have; name the right file")
    return data


def open_lock(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a lock file in a folder that other users may write to, and return its descriptor.

    A lock of another user is never waited for, because that user could hold it for ever.

    Args:
        path: of the lock; its last part must not be a link.
        flags: as of `os.open`, with `os.O_CREAT` where the lock may be new (mode 0600).
    Raises:
        NotRegular: it is not a regular file.
        PermissionError: it belongs to another user.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        found = os.fstat(descriptor)
        _check_mode(found.st_mode, path)
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "belongs to another user", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _real(path: str | os.PathLike[str]) -> str:
    """The path without links. A last part that does not exist stays."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)


def _check_mode(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a regular file; name a file", str(path))
    kind = next((name for test, name in _KINDS if test(mode)), "a link")
    raise NotRegular(errno.EINVAL, f"is {kind}, not a regular file; replace it by a file", str(path))
