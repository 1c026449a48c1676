"""A store in a local folder. A write goes to a temporary file that is then renamed, so no reader sees a part."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.outside.regular import NotRegular, check_regular, open_regular
from data_pipeline.store.base import Store, checked_key
from data_pipeline.store.files import TEMPORARY, atomic_file, disk_errors, flush, lock_file, temporary_beside

_FILE_SYSTEMS_OWN = "lost+found"
"""A folder at the top of a disk that only root may list. The file system puts pieces of files there, never objects."""
COPIED = 2**22
"""Bytes of a file that are copied at once."""


class LocalStore(Store):
    """Objects as files of one folder. Each write is flushed to the disk before its file gets the object's name."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.expanduser(root)).absolute()  # Path's own raises where no user has the name behind ~

    def uri(self, key: str = "") -> str:
        return str(self.local_path(key)) if key else str(self.root)

    def size(self, key: str) -> int:
        path = self.local_path(key)
        try:
            check_regular(path)
        except IsADirectoryError:
            raise FileNotFoundError(errno.ENOENT, "is a folder, not an object", str(path)) from None
        return path.stat().st_size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self.local_path(key)
        with _naming(path), open_regular(path) as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def read_to_file(self, key: str, path: str | Path, arrived: Callable[[int], None] = lambda total: None) -> int:
        total, source = 0, self.local_path(key)

        def read() -> bytes:
            with _naming(source):
                return file.read(COPIED)

        with open_regular(source) as file, atomic_file(Path(path)) as temporary, temporary.open("wb") as copy:
            while piece := read():
                copy.write(piece)
                total += len(piece)
                arrived(total)
        return total

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
        with disk_errors(target), temporary_beside(target) as temporary:
            temporary.write_bytes(data)
            flush(temporary)
            try:
                os.link(temporary, target)  # unlike rename, a link never replaces an existing name
            except FileExistsError:
                return False
            flush(target.parent)
        return True

    def keys(self, prefix: str = "") -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        start = self.root / folder if folder else self.root
        for directory, folders, files in os.walk(start, onerror=_raise_unlisted):
            folders.sort()
            if Path(directory) == self.root and _FILE_SYSTEMS_OWN in folders:
                folders.remove(_FILE_SYSTEMS_OWN)
            relative = Path(directory).relative_to(self.root).as_posix()
            for name in sorted(files):
                key = name if relative == "." else f"{relative}/{name}"
                if key.startswith(prefix) and not name.startswith(TEMPORARY):
                    yield key

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for key in self.keys(prefix):
            with suppress(FileNotFoundError):  # another process has removed the file since it was listed
                yield key, self.size(key)

    def delete(self, key: str) -> None:
        self.local_path(key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path:
        """The file of a key. Raises: ValueError when the key would leave the folder."""
        return self.root / checked_key(key)

    def remove_leftovers(self, folder: str, *, alone: bool = False) -> None:
        """Remove the temporary files of killed writers from `folder`. Files of living writers are locked and stay.

        What another user has left, and does not let this one remove, stays, too.
        """
        for path in (self.root / folder).glob(f"{TEMPORARY}*"):
            with suppress(FileNotFoundError, NotRegular, PermissionError), open_regular(path, follow=False) as file:
                if lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink()

    def _target(self, key: str) -> Path:
        target = self.local_path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _raise_unlisted(error: OSError) -> None:
    """A folder that is not there has no keys, but one that cannot be listed must not look as if it had none."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the disk, which the system does not do where a file is read that is open already."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
