"""Plain ustar archives whose bytes depend on their members alone: mtime 0, uid and gid 0, mode 0644, no user names.

Offsets are known as the archive is written, so the sample index needs no second pass.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
_END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Member:
    """One file of an archive: its name, where its header and its own bytes begin, how long it is."""

    name: str
    header: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + padded(self.size)


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def encoded(members: Iterable[tuple[str, bytes]]) -> bytes:
    """The bytes of some members, headers and padding included, without the end of the archive.

    Raises: ValueError when a name does not fit ustar (100 bytes).
    """
    pieces: list[bytes] = []
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        pieces += [info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"), data, bytes(padded(len(data)) - len(data))]
    return b"".join(pieces)


class TarWriter:
    """Appends encoded samples to a file and digests it on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")

    def append(self, data: bytes) -> int:
        """Add the result of `encoded`; returns the offset it begins at."""
        offset = self.bytes
        self._write(data)
        return offset

    def close(self) -> str:
        """Write the end of the archive; returns the file's SHA-256."""
        if not self._file.closed:
            self._write(_END)
            self._file.close()
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def end_bytes() -> int:
    """Bytes of the end of an archive."""
    return len(_END)


def members(file: BinaryIO) -> Iterator[Member]:
    """Walk an archive's headers without reading its contents.

    Raises: tarfile.TarError for damage.
    """
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        member = Member(info.name, position, position + BLOCK, info.size)
        yield member
        position = member.end
