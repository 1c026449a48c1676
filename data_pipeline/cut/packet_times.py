"""What the time stamps of a video's packets tell before any packet is decoded: which frames will be shown, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

REORDER = 16  # pictures; the bound on the decoded picture buffer in ITU-T H.264 A.3.1 and H.265 A.4.2

PacketHead = tuple[int | None, int | None, int]  # pts, dts and size: enough to recognise a packet


def head_of(packet: Any) -> PacketHead:
    """What a later pass over the same file recognises a packet by."""
    return packet.pts, packet.dts, packet.size


@dataclass
class Scan:
    """What the packets of a window tell before any of them is decoded. Ticks are in the stream's time base."""

    ticks: list[int]  # presentation times in order; for packets without one, decoding times
    planned: bool  # whether these are exactly the times of the frames that will be shown
    head: PacketHead  # pts, dts and size of the packet to begin decoding at, by which a second pass recognises it
    end: int  # tick at which the last frame gives way, as far as its packet knows
    packets: int = field(default=0, compare=False)  # that were read, with those of which no frame is shown


class PacketTimes:
    """Gathers the times of a window's packets, one packet after the other.

    Args:
        planned: whether each packet of this codec and container is one frame with a time of its own.
    """

    def __init__(self, planned: bool) -> None:
        self.planned = planned
        self.restarted = False
        self.packets = 0
        self.head: PacketHead | None = None
        self._first: PacketHead | None = None
        self._ticks: list[int] = []  # in order of decoding
        self._begin: int | None = None  # the smallest tick of all packets
        self._end = 0
        self._dts: int | None = None  # that of the packet before
        self._gap = 1  # ticks from one decoding time to the next, the last time that they rose
        self._offset = 0  # what brings the ticks of a clock that has restarted behind those before

    def add(self, packet: Any, opening: int | None, *, counted: bool) -> None:
        """Take the next packet that has data.

        Args:
            opening: tick at which the window begins. Packets before the last keyframe until then are forgotten.
        """
        self.packets += 1
        if self._first is None:
            self.head = self._first = head_of(packet)  # its decoding time is a guess after a seek
        elif packet.dts is not None and not packet.is_discard:
            self._follow(packet.dts)
        if packet.is_discard:  # what an edit list leaves out; between two edits its times run ahead and come back
            return
        self.planned = self.planned and packet.pts is not None and not packet.is_corrupt
        tick = packet.dts if packet.pts is None or counted else packet.pts
        if tick is None:
            return
        if packet.is_keyframe and not counted and not self.restarted and opening is not None and tick <= opening:
            self.head = head_of(packet)
            self._ticks.clear()
        tick += self._offset
        self._ticks.append(tick)
        self._begin = tick if self._begin is None else min(self._begin, tick)
        self._end = max(self._end, tick + (packet.duration or 0))

    def _follow(self, dts: int) -> None:
        if self._dts is not None and dts < self._dts:
            self.planned, self.restarted, self.head = False, True, self._first
            self._offset += self._dts + self._gap - dts
        elif self._dts is not None:
            self._gap = max(1, dts - self._dts)
        self._dts = dts

    def span(self, opening: int | None) -> int:
        """Ticks from the beginning of the window, or of the file where that is later, to the last packet."""
        if self._begin is None or not self._ticks:
            return 0
        return self._ticks[-1] - (self._begin if opening is None else max(self._begin, opening))

    def scan(self) -> Scan:
        """What the packets have told; at least one was added."""
        assert self.head is not None
        ordered = sorted(self._ticks)
        # A decoder holds back at most so many pictures. Times that are further out of order are not those shown.
        near = all(a <= b for a, b in zip(ordered, self._ticks[REORDER:], strict=False))
        distinct = all(a < b for a, b in pairwise(ordered))
        planned = self.planned and near and distinct and len(ordered) > 1
        return Scan(ordered, planned, self.head, self._end, self.packets)
