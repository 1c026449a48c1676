"""One open video file: container, stream, and the time stamps of its packets.

Files come from strangers. So only containers of video are opened, because a playlist or a concat script would make the
demuxer open other files and addresses. One thread decodes, and only the packets of the chosen stream are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
from av.stream import Discard, Disposition

from data_pipeline.ffmpeg import describe, raise_if_out_of_memory

# Only in these codecs each packet is one shown frame; VP8, VP9 and AV1 have packets that show nothing.
PLANNABLE = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "vc1", "wmv3"})
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,ivf,mxf,nut,dv,"
    "av1,obu,rm,yuv4mpegpipe"
)

# Containers that number their packets and store no presentation times. libavformat guesses the times, and its guesses
# are wrong for B-frames.
COUNTED = frozenset({"avi"})

PacketHead = tuple[int | None, int | None, int]  # pts, dts and size: enough to recognise a packet


class UndecodableVideo(ValueError):
    """No clip can be made of the file; its row is quarantined. The message says what failed and where.

    Args:
        cause: a name that never changes: undecodable; from the isolated process also crash, timeout and memory.
    """

    def __init__(self, message: str, cause: str = "undecodable") -> None:
        super().__init__(message)
        self.cause = cause


class SourceTooLong(Exception):
    """The source, or its window, is longer than allowed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.1f} s")
        self.seconds = seconds


class PlanFailed(Exception):
    """The decoder did not give the frames that the packets had announced; all frames must be decoded in sequence."""


@dataclass
class Scan:
    """What the packets of a window tell before any of them is decoded. Ticks are in the stream's time base."""

    ticks: list[int]  # presentation times in order; for packets without one, decoding times
    planned: bool  # whether these are exactly the times of the frames that will be shown
    head: PacketHead  # pts, dts and size of the first packet, by which a second pass recognises it


class VideoSource:
    """One open video file and its first real video stream. Use as a context manager.

    Raises:
        UndecodableVideo: the file is in no container of video, has no video stream, or no decoder knows its codec.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UndecodableVideo(f"{self.path.name}: not a regular file")
        self._open()

    def _open(self) -> None:
        try:
            self.container = av.open(
                str(self.path), metadata_errors="replace", options={"format_whitelist": CONTAINERS}
            )
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.FFmpegError):
                raise_if_out_of_memory(error)
            raise UndecodableVideo(f"{self.path.name}: cannot be opened as video: {describe(error)}") from error
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "nothing"
            self.container.close()
            raise UndecodableVideo(f"{self.path.name}: no video stream, only {kinds}")
        self.stream = streams[0]
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        if self.stream.codec_context is None or not self.stream.time_base:
            self.container.close()
            raise UndecodableVideo(f"{self.path.name}: no decoder for its video stream")
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1
        self.time_base = Fraction(self.stream.time_base)
        self.counted = self.container.format.name in COUNTED  # frames are dated by their order alone
        self.sar = Fraction(self.stream.sample_aspect_ratio or 1) or Fraction(1)

    def reopen(self) -> None:
        """Open the file again: at the beginning, and with a fresh decoder."""
        self.container.close()
        self._open()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def info(self) -> dict[str, Any]:
        """Size, duration, codec and the like, which the sample's description repeats."""
        seconds = None
        if self.stream.duration is not None:
            seconds = float(self.stream.duration * self.time_base)
        elif self.container.duration is not None:
            seconds = self.container.duration / av.time_base
        return {
            "width": self.codec.width,
            "height": self.codec.height,
            "duration": seconds,
            "codec": self.codec.name,
            "pixel_format": self.codec.pix_fmt,
            "sar": f"{self.sar.numerator}:{self.sar.denominator}",
            "container": self.container.format.name,
        }

    @property
    def declared_end(self) -> float | None:
        """The end of the video stream according to its header, seconds; None when the header has no duration."""
        if self.stream.duration is None:
            return None
        return float((self.stream.duration + (self.stream.start_time or 0)) * self.time_base)

    @property
    def top_first(self) -> bool:
        """Whether the upper field of an interlaced frame comes first."""
        return self.codec.field_order not in (3, 4)  # AV_FIELD_BB, AV_FIELD_TB

    def scan(self, start: Fraction | None, end: Fraction | None, max_seconds: float) -> Scan:
        """Read the time stamps of all packets of a window, decoding nothing.

        Raises:
            UndecodableVideo: no packet can be read.
            SourceTooLong: the packets span more than `max_seconds`.
        """
        ticks: list[int] = []
        planned, head = self.codec.name in PLANNABLE and not self.counted, None
        limit = math.ceil(max_seconds / self.time_base)
        begin, opening = math.inf, -math.inf if start is None else math.floor(start / self.time_base)
        stop = None if end is None else math.ceil(end / self.time_base)
        try:
            for packet in self.packets(start):
                if not packet.size:
                    continue
                head = head or (packet.pts, packet.dts, packet.size)
                if packet.is_discard:
                    continue
                planned = planned and packet.pts is not None and not packet.is_corrupt
                tick = packet.dts if packet.pts is None or self.counted else packet.pts
                if tick is None:
                    continue
                ticks.append(tick)
                begin = min(begin, tick)
                if tick - max(begin, opening) > limit:
                    raise SourceTooLong(float((tick - max(begin, opening)) * self.time_base))
                if stop is not None and packet.dts is not None and packet.dts > stop:
                    break
        except av.error.FFmpegError as error:
            raise_if_out_of_memory(error)
            planned = False
        if head is None:
            raise UndecodableVideo(f"{self.path.name}: the video stream has no packets")
        ticks.sort()
        distinct = all(a < b for a, b in pairwise(ticks))
        return Scan(ticks, planned and distinct and len(ticks) > 1, head)

    def packets(self, start: Fraction | None, head: PacketHead | None = None) -> Iterator[Any]:
        """The packets from the last keyframe at or before `start`, or from the packet `head` of an earlier pass.

        In a container whose frames are counted these are all packets, because after a jump the decoder may leave out
        frames, which spoils the count.
        """
        if head is not None and head[1] is not None:
            self.container.seek(head[1], stream=self.stream)
        elif start is not None and start > 0 and not self.counted:
            self.container.seek(math.floor(start / self.time_base), stream=self.stream)
        packets = self.container.demux(self.stream)
        first = next(packets, None)
        moved = head is not None and first is not None and (first.pts, first.dts, first.size) != head
        late = head is None and start is not None and first is not None and (first.pts or 0) * self.time_base > start
        if moved or late:  # the container cannot seek to this place
            self.reopen()
            packets = self.container.demux(self.stream)
            first = next(packets, None)
            if moved and first is not None and (first.pts, first.dts, first.size) != head:
                raise PlanFailed
        if first is not None:
            yield first
            yield from packets
