"""One open video file: container, stream, and its packets.

Files come from strangers. So only containers of video are opened, because a playlist or a concat script would make the
demuxer open other files and addresses. One thread decodes, and only the packets of the chosen stream are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
from av.stream import Discard, Disposition

from data_pipeline.cut.matroska import is_cut_off
from data_pipeline.cut.packet_times import PacketHead, PacketTimes, Scan, head_of
from data_pipeline.ffmpeg import describe, raise_if_out_of_memory
from data_pipeline.raw_video import is_raw, raw_geometry

# Only in these codecs each packet is one shown frame; VP8, VP9 and AV1 have packets that show nothing.
PLANNABLE = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "vc1", "wmv3"})
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,ivf,mxf,nut,dv,"
    "av1,obu,rm,yuv4mpegpipe,rawvideo"
)

MATROSKA = "matroska,webm"

# Containers with a table of their keyframes, in which a seek finds the keyframe at or before a time. In all others a
# seek guesses, and the clock may restart in mid-file; so those are read from their beginning.
INDEXED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", MATROSKA})

# Containers whose header says how long the video track alone is.
TRACK_LENGTHS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "avi"})

# Containers that number their packets and store no presentation times. libavformat guesses the times, and its guesses
# are wrong for B-frames.
COUNTED = frozenset({"avi"})


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
        raw = self._raw_options()
        try:
            # FFmpeg would take the beginning of a relative name such as `a: b.mp4` for a protocol.
            self.container = av.open(
                str(self.path.absolute()),
                format="rawvideo" if raw else None,
                metadata_errors="replace",
                options={"format_whitelist": CONTAINERS} | raw,
            )
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.FFmpegError):
                raise_if_out_of_memory(error)
            raise UndecodableVideo(f"{self.path.name}: cannot be opened as video: {describe(error)}") from error
        found = video_stream(self.container)
        if found is None:
            kinds = ", ".join(sorted({_kind(s) for s in self.container.streams})) or "nothing"
            self.container.close()
            raise UndecodableVideo(f"{self.path.name}: no video stream, only {kinds}")
        self.stream = found
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        if self.stream.codec_context is None or not self.stream.time_base:
            self.container.close()
            raise UndecodableVideo(f"{self.path.name}: no decoder for its video stream")
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1
        self.time_base = Fraction(self.stream.time_base)
        self.indexed = self.container.format.name in INDEXED
        self.counted = self.container.format.name in COUNTED  # frames are dated by their order alone
        self.sar = Fraction(self.stream.sample_aspect_ratio or 1) or Fraction(1)
        self.transfer = int(self.codec.color_trc)  # ITU-T H.273 table 3, as the container says, before any decoding

    def _raw_options(self) -> dict[str, str]:
        """What the demuxer of raw pictures must be told; nothing for other files.

        Raises:
            UndecodableVideo: the file name does not say size and rate.
        """
        if not is_raw(self.path.name):
            return {}
        try:
            geometry = raw_geometry(self.path.name)
        except ValueError as error:
            raise UndecodableVideo(str(error)) from error
        size = f"{geometry.width}x{geometry.height}"
        return {"video_size": size, "framerate": str(geometry.fps), "pixel_format": "yuv420p"}

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
    def fps(self) -> Fraction | None:
        """Average number of frames a second, as header or file name say it; None where neither does."""
        rate = raw_geometry(self.path.name).fps if is_raw(self.path.name) else self.stream.average_rate
        return Fraction(rate) if rate else None

    @property
    def declared_end(self) -> float | None:
        """The end of the video stream according to its header, seconds; None when the header does not have it.

        In containers that are not in `TRACK_LENGTHS` the duration is that of the whole file, sound included.
        """
        if self.stream.duration is None or self.container.format.name not in TRACK_LENGTHS:
            return None
        return float((self.stream.duration + (self.stream.start_time or 0)) * self.time_base)

    @property
    def cut_off(self) -> bool:
        """Whether the file ends before its container does; told of Matroska and WebM, whose every part has a length."""
        return self.container.format.name == MATROSKA and is_cut_off(self.path)

    def has_all(self, packets: int) -> bool:
        """Whether so many packets are all that the container's table promises. Then nothing is missing at the end,
        whatever length an edit list makes of them. Where there is no table, this cannot be told.

        In mp4 and mov the index has the packets that the edit list takes; in AVI it may have been guessed.
        """
        promised = len(self.stream.index_entries) if self.indexed else int(self.stream.frames)
        return self.stream.frames > 0 and promised <= packets

    @property
    def top_first(self) -> bool:
        """Whether the upper field of an interlaced frame comes first."""
        return self.codec.field_order not in (3, 4)  # AV_FIELD_BB, AV_FIELD_TB

    def scan(self, start: Fraction | None, end: Fraction | None, max_seconds: float) -> Scan:
        """Read the time stamps of all packets of a window, decoding nothing.

        Where the decoding times go back, the clock of the file has restarted or stumbled: such a window is not planned,
        and its ticks go on from there as if the clock had not.

        Raises:
            UndecodableVideo: no packet can be read.
            SourceTooLong: the packets span more than `max_seconds`.
        """
        times = PacketTimes(self.codec.name in PLANNABLE and not self.counted)
        limit = math.ceil(max_seconds / self.time_base)
        opening = None if start is None else math.floor(start / self.time_base)
        stop = None if end is None else math.ceil(end / self.time_base)
        try:
            for packet in self.packets(start):
                if not packet.size:
                    continue
                times.add(packet, opening, counted=self.counted)
                if times.span(opening) > limit:
                    raise SourceTooLong(float(times.span(opening) * self.time_base))
                late = stop is not None and packet.dts is not None and packet.dts > stop
                if late and not times.restarted and not packet.is_discard:
                    break
        except av.error.FFmpegError as error:
            raise_if_out_of_memory(error)
            times.planned = False
        if times.head is None:
            raise UndecodableVideo(f"{self.path.name}: the video stream has no packets")
        return times.scan()

    def packets(self, start: Fraction | None, head: PacketHead | None = None) -> Iterator[Any]:
        """The packets from a keyframe at or before `start`, or from the packet `head` of an earlier pass.

        In a container whose frames are counted these are all packets, because after a jump the decoder may leave out
        frames, which spoils the count. Where a seek is not exact they are all packets, too, or all from `head` on.

        Raises:
            PlanFailed: while iterating, when no packet is `head`.
        """
        if head is not None:
            target = head[1] if head[0] is None else head[0]
        else:
            target = math.floor(start / self.time_base) if start is not None and start > 0 else None
        if target is not None and self.indexed:
            self.container.seek(target, stream=self.stream)
            packets = self.container.demux(self.stream)
            first = next(packets, None)
            if first is not None and self._right_place(first, start, head):
                yield first
                yield from packets
                return
        if target is not None:
            self.reopen()
        yield from self._from_beginning(head)

    def _right_place(self, first: Any, start: Fraction | None, head: PacketHead | None) -> bool:
        """Whether a seek arrived where decoding can begin."""
        if head is not None:
            return head_of(first) == head
        return bool(first.is_keyframe) and start is not None and (first.pts or 0) * self.time_base <= start

    def _from_beginning(self, head: PacketHead | None) -> Iterator[Any]:
        """All packets, or those from `head` on, of a file that has just been opened."""
        packets = self.container.demux(self.stream)
        if head is not None:
            first = next((packet for packet in packets if head_of(packet) == head), None)
            if first is None:
                raise PlanFailed
            yield first
        yield from packets


def video_stream(container: av.container.InputContainer) -> Any | None:
    """The video track that players show: no cover, no single picture beside a track that moves; of the others the
    track that is flagged as default, then the one of most pixels, then the first. None where there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return max(
        streams,
        key=lambda s: (s.frames != 1, bool(s.disposition & Disposition.default), _pixels(s), -s.index),
        default=None,
    )


def _pixels(stream: Any) -> int:
    codec = stream.codec_context  # None where no decoder knows the codec
    return codec.width * codec.height if codec is not None else 0


def _kind(stream: Any) -> str:
    return "a cover picture" if stream.type == "video" else str(stream.type)
