"""Plain ustar archives. Their bytes depend on the members alone: mtime, uid and gid are 0, the mode is 0644.

The writer knows the offset of every member, so the sample index needs no second pass over the archive.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
_END = bytes(2 * BLOCK)
_SIZE = slice(124, 136)
"""Bytes of a header that hold the file's size. Python would take a sign there, so that a reader could go backwards."""


@dataclass(frozen=True)
class Member:
    """One file of an archive. All positions are bytes from the beginning of the archive, or of the sample."""

    name: str
    header: int  # position of the header
    offset: int  # position of the file's own bytes
    size: int  # length of the file in bytes

    @property
    def end(self) -> int:
        """Position of the next header."""
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
    """Appends encoded samples to a file and computes the file's digest at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")

    def append(self, data: bytes) -> int:
        """Add the result of `encoded` and return the position of its first byte."""
        offset = self.bytes
        self._write(data)
        return offset

    def close(self) -> str:
        """Write the end of the archive and return the file's SHA-256 in hexadecimal."""
        if not self._file.closed:
            self._write(_END)
            self._file.close()
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def end_bytes() -> int:
    """Length of the end of an archive in bytes."""
    return len(_END)


def size_of_file(header: bytes) -> int:
    """The size that a header states of its file. Raises: tarfile.ReadError where that is no octal number."""
    size = header[_SIZE]
    if not re.fullmatch(rb" *[0-7]+[ \0]*", size):
        raise tarfile.ReadError(f"the size {size!r} in its header is no octal number")
    return int(size.strip(b" \0"), 8)


def read_header(block: bytes, position: int) -> Member:
    """The member whose header is `block` and begins at byte `position`.

    Raises: tarfile.TarError for a damaged header, and for anything but a regular file.
    """
    size_of_file(block)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except (ValueError, OverflowError) as error:
        raise tarfile.ReadError(f"its header holds a number that is none: {error}") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise tarfile.ReadError(f"{info.name!r} is no regular file")
    return Member(info.name, position, position + BLOCK, info.size)


def members(file: BinaryIO) -> Iterator[Member]:
    """All members of an archive. Only the headers are read.

    Raises: tarfile.TarError for damage.
    """
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        member = read_header(header, position)
        yield member
        position = member.end


def parse_members(raw: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample by extension, from the sample's bytes in a shard.

    Raises:
        ClipError: a header is damaged, or a member belongs to another key: shard and index are not of one build.
    """
    contents: dict[str, bytes] = {}
    position = 0
    while position < len(raw):
        header = raw[position : position + BLOCK]
        if len(header) < BLOCK:
            raise ClipError(f"ends inside a tar header at byte {position}")
        try:
            member = read_header(header, position)
        except tarfile.TarError as error:
            raise ClipError(f"has a damaged tar header at byte {position}: {error}") from error
        end = member.offset + member.size
        if not member.name.startswith(f"{key}.") or end > len(raw):
            raise ClipError(f"has the member {member.name!r} of {member.size} bytes in its place")
        contents[member.name[len(key) + 1 :]] = raw[member.offset : end]
        position = member.end
    return contents


class ClipError(ValueError):
    """A stored clip does not hold what the index says, or the decoder cannot read it."""
