"""Whether a Matroska or WebM file was cut off. Each of its elements says how long it is (RFC 8794, RFC 9559)."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline.outside.regular import opened_descriptor

_SEGMENT = 0x18538067
_WITHOUT_LENGTH = frozenset({_SEGMENT, 0x1F43B675})
"""Names of the elements that may say no length: the segment, which is all of the file, and its clusters."""
_MOST_HEAD = 12
"""Bytes of the longest head of an element: four of its name, and eight of its length."""
_MOST_ELEMENTS = 4_000_000
"""Elements that are looked at. A recording of a day whose clusters have no lengths has fewer."""


def is_cut_off(path: Path) -> bool:
    """Whether the file ends before the last of its elements does.

    Only the heads of elements are read, and those inside an element only where that one does not say its length. False
    also where it cannot be told: a file without the length of the whole that ends between two elements, damaged heads,
    or more elements than any recording has.

    Raises:
        OSError: the file cannot be read.
    """
    file = opened_descriptor(path)
    try:
        size, at = os.fstat(file).st_size, 0
        for _ in range(_MOST_ELEMENTS):
            head = os.pread(file, _MOST_HEAD, at)
            end = _end_of(head) if head else None
            if end is None:
                return False
            at += end
            if at > size:
                return True
            if int.from_bytes(head[:4], "big") == _SEGMENT and end > _MOST_HEAD:
                return False  # all of the video is there; what some program has appended may look like an element
        return False
    finally:
        os.close(file)


def _end_of(head: bytes) -> int | None:
    """Where an element ends, counted from its first byte; of one without a length, where its first element begins.

    Args:
        head: its first bytes, `_MOST_HEAD` of them or all that the file still has.
    Returns:
        None for bytes that begin no element.
    """
    name = _bytes_of_number(head[0])
    if name > 4:
        return None
    if len(head) <= name:
        return name + 1  # its length is not in the file any more
    length = _bytes_of_number(head[name])
    if length > 8:
        return None
    begin, marker = name + length, 1 << 7 * length
    value = int.from_bytes(head[name:begin], "big") - marker
    if len(head) < begin:
        return begin  # only a part of its length is in the file
    if value == marker - 1:  # all bits are set: it says no length
        return begin if int.from_bytes(head[:name], "big") in _WITHOUT_LENGTH else None
    return begin + value


def _bytes_of_number(first: int) -> int:
    """Bytes of a number whose first byte this is: one more than the zero bits that it begins with."""
    return 9 - first.bit_length()
