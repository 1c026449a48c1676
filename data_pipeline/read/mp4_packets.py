"""The packets of a stored clip, read from the mp4's own tables instead of through a demuxer.

Opening a clip with libavformat takes as long as decoding three frames, and a training example has 16. Stored clips are
plain: one H.264 track, no fragments. The sample tables of such a file (ISO/IEC 14496-12, sections 8.6 and 8.7) say
where every packet lies, when its frame is shown and where decoding can begin. libavformat reads all other files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

_FOLDERS = frozenset({b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"})
_ENTRY_HEADER = 78  # bytes of a visual sample entry before its boxes (section 12.1.3)


@dataclass(frozen=True)
class PacketTable:
    """Where the packets of a clip are, in decoding order.

    Attributes:
        offsets, sizes: bytes of each packet in the file, [P].
        shown: when each one's frame is shown, in units of `tick`, [P].
        keys: packets at which decoding can begin, ascending.
        tick: seconds of one unit.
        decoder_header: the avcC record, which the decoder needs before the first packet.
        colour: (primaries, transfer, matrix, full range) as the container states them, or None.
    """

    offsets: Int64Array
    sizes: Int64Array
    shown: Int64Array
    keys: Int64Array
    tick: Fraction
    decoder_header: bytes
    colour: tuple[int, int, int, bool] | None


class _NotPlain(ValueError):
    """The file has something that stored clips do not have."""


def read_packet_table(data: bytes) -> PacketTable | None:
    """The packets of a plain one-track H.264 mp4; None for any other file, whole or damaged."""
    try:
        boxes: dict[bytes, tuple[int, int]] = {}
        _collect(data, 0, len(data), boxes)
        return _table(data, boxes)
    except (_NotPlain, struct.error, KeyError, IndexError, ValueError):
        return None


def _collect(data: bytes, at: int, end: int, boxes: dict[bytes, tuple[int, int]]) -> None:
    """Name -> (begin, end) of the content of every box below `at`."""
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:  # a 64-bit length follows
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        if (
            size < begin - at
            or at + size > end
            or name == b"mvex"
            or (name in boxes and name not in (b"free", b"udta"))
        ):
            raise _NotPlain
        boxes[name] = (begin, at + size)
        if name in _FOLDERS:
            _collect(data, begin, at + size, boxes)
        at += size


def _array(data: bytes, at: int, count: int, columns: int = 1, kind: str = ">u4") -> npt.NDArray[Any]:
    return np.frombuffer(data, kind, count * columns, at).reshape(count, columns).astype(np.int64)


def _counted(data: bytes, box: tuple[int, int], columns: int, kind: str = ">u4") -> npt.NDArray[Any]:
    """The rows of a table box: version and flags, a count, the rows."""
    (count,) = struct.unpack_from(">I", data, box[0] + 4)
    return _array(data, box[0] + 8, count, columns, kind)


def _spread(values: Int64Array, times: Int64Array, total: int) -> Int64Array:
    """np.repeat, if the result has `total` values. A damaged table may ask for billions."""
    if times.sum() != total or times.min(initial=0) < 0 or times.max(initial=0) > total:
        raise _NotPlain
    return np.repeat(values, times)


def _table(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> PacketTable:
    header, colour = _sample_entry(data, boxes[b"stsd"])
    begin = boxes[b"mdhd"][0]
    (scale,) = struct.unpack_from(">I", data, begin + (20 if data[begin] == 1 else 12))
    (uniform, count) = struct.unpack_from(">II", data, boxes[b"stsz"][0] + 4)
    if count > len(data):
        raise _NotPlain
    sizes = np.full(count, uniform) if uniform else _array(data, boxes[b"stsz"][0] + 12, count)[:, 0]
    durations = _counted(data, boxes[b"stts"], 2)
    decoded = _spread(durations[:, 1], durations[:, 0], count)
    shown = np.cumsum(decoded) - decoded
    if b"ctts" in boxes:
        delays = _counted(data, boxes[b"ctts"], 2, ">i4")  # signed in version 1, small in version 0
        shown = shown + _spread(delays[:, 1], delays[:, 0], count)
    if b"elst" in boxes:
        shown = shown - _edit(data, boxes[b"elst"][0])
    keys = _counted(data, boxes[b"stss"], 1)[:, 0] - 1 if b"stss" in boxes else np.arange(count)
    offsets = _offsets(data, boxes, sizes)
    if not (len(offsets) == len(sizes) == len(shown) > 0 and len(keys) and keys[0] == 0 and scale):
        raise _NotPlain
    if offsets.min() < 0 or (offsets + sizes).max() > len(data) or keys.max() >= count:
        raise _NotPlain
    return PacketTable(offsets, sizes, shown, keys, Fraction(1, scale), header, colour)


def _offsets(data: bytes, boxes: dict[bytes, tuple[int, int]], sizes: Int64Array) -> Int64Array:
    """Packets lie in chunks: `stsc` says how many lie in each chunk, `stco` or `co64` where each chunk begins."""
    chunks = _counted(data, boxes[b"co64"], 1, ">u8") if b"co64" in boxes else _counted(data, boxes[b"stco"], 1)
    runs = _counted(data, boxes[b"stsc"], 3)
    lengths = _spread(runs[:, 1], np.diff(np.append(runs[:, 0] - 1, len(chunks))), len(chunks))
    before = np.cumsum(sizes) - sizes
    first = np.cumsum(lengths) - lengths
    return np.asarray(_spread(chunks[:, 0] - before[first], lengths, len(sizes)) + before)


def _edit(data: bytes, begin: int) -> int:
    """The media time at which presentation begins, from a single plain edit, as an encoder with B-frames writes it."""
    (count,) = struct.unpack_from(">I", data, begin + 4)
    wide = data[begin] == 1
    (start,) = struct.unpack_from(">q" if wide else ">i", data, begin + (16 if wide else 12))
    (rate,) = struct.unpack_from(">I", data, begin + (24 if wide else 16))
    if count != 1 or start < 0 or rate != 1 << 16:
        raise _NotPlain
    return int(start)


def _sample_entry(data: bytes, box: tuple[int, int]) -> tuple[bytes, tuple[int, int, int, bool] | None]:
    """avcC and colr of the only sample entry."""
    (count,) = struct.unpack_from(">I", data, box[0] + 4)
    size, name = struct.unpack_from(">I4s", data, box[0] + 8)
    if count != 1 or name != b"avc1":
        raise _NotPlain
    inner: dict[bytes, tuple[int, int]] = {}
    _collect(data, box[0] + 16 + _ENTRY_HEADER, box[0] + 8 + size, inner)
    begin, end = inner[b"avcC"]
    colour = None
    if b"colr" in inner:
        kind, primaries, transfer, matrix, full = struct.unpack_from(">4sHHHB", data, inner[b"colr"][0])
        colour = (primaries, transfer, matrix, bool(full & 0x80)) if kind == b"nclx" else None
    return data[begin:end], colour
