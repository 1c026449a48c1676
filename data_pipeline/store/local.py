"""A store in a local folder. A write goes to a temporary file that is then renamed, so no reader sees a part."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from data_pipeline.outside.regular import NotRegular, check_regular, open_regular
from data_pipeline.store.base import Store, checked_key
from data_pipeline.store.files import TEMPORARY, atomic_file, disk_errors, flush, lock_file, temporary_beside

COPIED = 2**22
"""Bytes of a file that are copied at once."""


class LocalStore(Store):
    """Objects as files of one folder. Each write is flushed to the disk before its file gets the object's name."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.expanduser(root)).absolute()

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
        with open_regular(self.local_path(key)) as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def read_to_file(self, key: str, path: str | Path, arrived: Callable[[int], None] = lambda total: None) -> int:
        total = 0
        with (
            open_regular(self.local_path(key)) as file,
            atomic_file(Path(path)) as temporary,
            temporary.open("wb") as copy,
        ):
            while piece := file.read(COPIED):
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
        for directory, folders, files in os.walk(start):
            folders.sort()
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
        """Remove the temporary files of killed writers from `folder`. Files of living writers are locked and stay."""
        for path in (self.root / folder).glob(f"{TEMPORARY}*"):
            with suppress(FileNotFoundError, NotRegular), open_regular(path, follow=False) as file:
                if lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink()

    def _target(self, key: str) -> Path:
        target = self.local_path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
