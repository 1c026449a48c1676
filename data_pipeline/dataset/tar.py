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


_BLOCK = 512  # bytes of a tar block


def parse_members(raw: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample, by extension, from its bytes in the shard (ustar, no extended headers).

    Raises:
        ClipError: a header is damaged, or a member belongs to another key: shard and index are not of one build.
    """
    members: dict[str, bytes] = {}
    at = 0
    while at < len(raw):
        header = raw[at : at + _BLOCK]
        if len(header) < _BLOCK:
            raise ClipError(f"ends inside a tar header at byte {at}")
        try:
            size, checksum = int(header[124:136].rstrip(b" \0"), 8), int(header[148:156].rstrip(b" \0"), 8)
        except ValueError as error:
            raise ClipError(f"has a damaged tar header at byte {at}") from error
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum or header[156:157] not in (b"0", b"\0"):
            raise ClipError(f"has a damaged tar header at byte {at}")
        prefix, name = header[345:500].rstrip(b"\0"), header[:100].rstrip(b"\0")
        path = (prefix + b"/" + name if prefix else name).decode(errors="replace")
        begin = at + _BLOCK
        if not path.startswith(f"{key}.") or begin + size > len(raw):
            raise ClipError(f"has the member {path!r} of {size} bytes in its place")
        members[path[len(key) + 1 :]] = raw[begin : begin + size]
        at = begin + -(-size // _BLOCK) * _BLOCK
    return members


class ClipError(ValueError):
    """A stored clip that does not hold what the index says, or that the decoder cannot read."""
