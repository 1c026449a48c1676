"""Sampling of a file whose time stamps are unknown beforehand or not trusted: decode all frames, keep clean stretches.

A decode error at one frame spoils all frames from there to the next clean keyframe. It may also have spoiled the 16
frames shown before it, because a decoder of H.264 or HEVC keeps at most 16 pictures and may show them in another order.
Spoiled frames are never used; a `Break` reports their stretch.

Times are on the file's own presentation timeline as long as its clock rises from frame to frame. A frame whose time is
not after that of the frame before is left out, because no player shows it. Where the frames after it go on from its
time, the clock has restarted, as in two recordings that were glued together: then the later part is shown after the
earlier one, its times are counted on from there, and a `Break` parts the two. A `Break` also stands where several
frames in a row were left out, because the picture jumps there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from heapq import heappop, heappush
from typing import Generic

import av
import av.error

from data_pipeline.cut.sampling import REORDER, Break, EveryNth, Grid, Picture, Sampling, ShownFrame, Take, shown_once
from data_pipeline.cut.video import PacketHead, SourceTooLong, UndecodableVideo, VideoSource
from data_pipeline.ffmpeg import describe, raise_if_out_of_memory
from data_pipeline.raw_video import is_raw


class SequentialSamples(Generic[Picture]):
    """Decodes all frames in order and gives the samples of the clean stretches. To be iterated once.

    Args:
        head: the packet to begin with; None to seek to `start`.
        opening: time of the first packet, seconds. When frames are missing after it, a break reports this.
        take: makes the picture of a frame that is kept.
        max_seconds: longest source that is read.
    Attributes:
        lost: seconds of the window that were spoiled or left out; complete after the iteration, like all attributes.
        span: seconds from the first frame to the last.
        frames: number of frames that the decoder gave.
        error: the first decode error, or "".
        end_time: when the last frame gives way, seconds.
    Raises:
        SourceTooLong: while iterating.
        UndecodableVideo: while iterating, when frames have no time stamps.
    """

    def __init__(
        self,
        source: VideoSource,
        fps: int,
        start: Fraction | None,
        end: Fraction | None,
        *,
        head: PacketHead | None,
        opening: float,
        take: Take[Picture],
        max_seconds: float,
    ) -> None:
        self.source, self.fps, self.start, self.end, self.take = source, fps, start, end, take
        self.head = head
        self.max_seconds = max_seconds
        self.lost = 0.0
        self.span = 0.0
        self.frames = 0
        self.error = ""
        self.end_time = opening
        self._clock = opening  # seconds; time of the newest frame
        # Samples and breaks that a decode error may still spoil, each with the number of the frame it follows from.
        self._held: deque[tuple[int, ShownFrame[Picture] | Break]] = deque()
        self._spoiled: Break | None = None
        self._spoiled_at = 0
        self._dates: list[int] = []  # a heap of the decoding times of packets whose frames have not come out yet
        self._missed_at_end: Break | None = None
        # Time stamps of keyframe packets that no damage can have reached.
        self._keyframes: deque[int] = deque(maxlen=64)

    def __iter__(self) -> Iterator[ShownFrame[Picture] | Break]:
        base = self.source.time_base
        grid: Sampling | None = None
        shown: tuple[int, av.VideoFrame] | None = None  # the newest frame; the next one tells until when it is shown
        first = 0
        for tick, frame, parted in self._dated():
            now = tick * base
            if grid is None:
                first = tick
                grid = self._sampling(now if self.start is None else max(self.start, now))
                if now - self._clock >= Fraction(1, self.fps) and self._spoiled is None:
                    self._lose(self._clock, float(now), "nothing decodable before the first keyframe")
            if now - grid.t0 > self.max_seconds:
                raise SourceTooLong(float(now - grid.t0))
            if shown is not None:
                self._sample(shown, tick, grid.shown(shown[0], tick), grid)
            if parted is not None and now > grid.t0 and self._spoiled is None:
                self._held.append((self.frames - 1, parted))
            shown = (tick, frame)
            self.frames += 1
            self._clock = float(now)
            self._judge(frame)
            yield from self._release(self.frames - REORDER)
            if grid.ended(tick):
                break
        if shown is not None and grid is not None:
            tick = shown[0]
            gap = max(1, (tick - first) // max(1, self.frames - 1))
            self._sample(shown, tick + gap, grid.shown(tick, None), grid)
            self.span = float((tick - first) * base)
            self.end_time = float((tick + gap) * base)
            if self._missed_at_end is not None and self._spoiled is None and self.end_time > grid.t0:
                self._held.append((self.frames - 1, self._missed_at_end))
        self._recover()
        yield from self._release(self.frames + 1)

    def _sampling(self, t0: Fraction) -> Sampling:
        """What is sampled of a source or window that begins at `t0` seconds."""
        return Grid(self.fps, t0, self.end, self.source.time_base)

    def _dated(self) -> Iterator[tuple[int, av.VideoFrame, Break | None]]:
        """All frames, each with its time in ticks, which rises from frame to frame, and what parts it from the last."""
        first, last, count, offset = 0, None, 0, 0
        left_out: list[tuple[int, av.VideoFrame]] = []  # newest frames whose times are not after `last`; one is held
        missed = 0  # how many they were
        for frame in self._frames():
            own = self._tick(frame)
            if own is None:
                raise UndecodableVideo(f"{self.source.path.name}: its frames carry no presentation times")
            tick = own + offset
            parted = None
            if last is not None:
                gap = max(1, (last - first) // max(1, count - 1))
                if tick <= last and not (left_out and tick > left_out[0][0]):
                    left_out, missed = [(tick, frame)], missed + 1
                    continue
                if tick <= last:
                    ((doubtful, picture),) = left_out
                    missed -= 1
                    jump = last + gap - doubtful
                    yield doubtful + jump, picture, self._restart(last + gap, last - offset, doubtful - offset)
                    offset, tick, count = offset + jump, tick + jump, count + 1
                elif missed > 1:
                    parted = self._missed(missed, tick, gap)
            left_out, missed = [], 0
            first, last, count = (tick if last is None else first), tick, count + 1
            yield tick, frame, parted
        if last is not None and missed > 1:
            gap = max(1, (last - first) // max(1, count - 1))
            self._missed_at_end = self._missed(missed, last + gap, gap, at_end=True)

    def _restart(self, tick: int, before: int, after: int) -> Break:
        """What parts the frames before a restart of the clock from those after it.

        Args:
            tick: of the first frame after it.
            before: tick of the last frame before it, by the file's own clock.
            after: tick of the first frame after it, by the file's own clock.
        """
        now, *own = (float(value * self.source.time_base) for value in (tick, before, after))
        return Break(now, now, "clock_restarts", {"from": own[0], "to": own[1]})

    def _missed(self, count: int, tick: int, gap: int, *, at_end: bool = False) -> Break:
        """What parts the frames around several that were left out, which count as lost.

        Args:
            tick: of the frame after them; at the end of the file, where the frame before them gives way.
            gap: ticks that a frame takes.
            at_end: no frame follows. What would be shown after the window is not lost.
        """
        now = float(tick * self.source.time_base)
        if self._spoiled is None and now > (self.start or 0):
            seconds = float(count * gap * self.source.time_base)
            self.lost += min(seconds, max(0.0, float(self.end) - now)) if at_end and self.end is not None else seconds
        error = f"{count} frames have no time of their own"
        self.error = self.error or f"{error} at {now:.3f} s"
        return Break(now, now, "damaged", {"error": error})

    def _frames(self) -> Iterator[av.VideoFrame]:
        """All frames that the decoder gives. Its errors are recorded as damage."""
        codec = self.source.codec
        codec.skip_frame = "DEFAULT"
        packets = self.source.packets(self.start, self.head)
        ended = False
        while not ended:
            packet = None
            frames: list[av.VideoFrame] = []
            try:
                packet = next(packets, None)
                ended = packet is None or not packet.size
            except av.error.FFmpegError as error:
                raise_if_out_of_memory(error)
                self._damage(describe(error))
                ended = True
            if packet is not None and packet.size and not packet.is_discard:
                if self.source.counted and packet.dts is not None:
                    heappush(self._dates, packet.dts)
                elif packet.is_keyframe and packet.pts is not None:
                    self._keyframes.append(packet.pts)
            try:
                frames = codec.decode(None if ended else packet)
            except av.error.FFmpegError as error:
                raise_if_out_of_memory(error)
                self._damage(describe(error), packet.pts if packet is not None else None)
            yield from frames

    def _tick(self, frame: av.VideoFrame) -> int | None:
        """The time at which a frame appears. Without presentation times the n-th frame gets the n-th decoding time."""
        if self.source.counted:
            return heappop(self._dates) if self._dates else None
        return frame.pts if frame.pts is not None else frame.dts

    def _sample(self, shown: tuple[int, av.VideoFrame], until: int, ks: range, grid: Sampling) -> None:
        if not ks or self._spoiled is not None:
            return
        tick, frame = shown
        for item in shown_once(self.take(frame), tick, until, ks, grid, self.source.time_base):
            self._held.append((self.frames - 1, item))

    def _judge(self, frame: av.VideoFrame) -> None:
        """Decide by the newest frame whether the frames that follow are spoiled or clean."""
        if frame.is_corrupt:
            self._damage("the decoder flags a frame as damaged", frame.pts)
        elif self._spoiled is not None and frame.key_frame:
            # A keyframe that was decoded before the damage may still come out after it. In a container whose frames are
            # counted, one lost frame gives a wrong time to all that follow, so no frame after the damage is trusted.
            if self.source.counted:
                return
            later = frame.pts in self._keyframes if frame.pts is not None else self.frames - self._spoiled_at > REORDER
            if later:
                self._recover()

    def _damage(self, error: str, tick: int | None = None) -> None:
        """Spoil the held samples, and the frames that follow up to the next keyframe after `tick`."""
        self.error = self.error or f"{error} at {self._clock:.3f} s"
        self._spoiled_at = self.frames
        # A keyframe shown after the damaged frame does not depend on that frame, even when it was decoded earlier.
        later = [key for key in self._keyframes if tick is not None and key > tick]
        self._keyframes = deque(later, maxlen=self._keyframes.maxlen)
        if self._spoiled is None:
            begin = next((item.time for _, item in self._held if isinstance(item, ShownFrame)), self._clock)
            self._spoiled = Break(begin, begin, "damaged", {"error": error})
            self._held.clear()

    def _recover(self) -> None:
        if self._spoiled is not None:
            start, error = self._spoiled.start, str(self._spoiled.measured["error"])
            self._spoiled = None
            self._lose(start, max(self._clock, start), error)

    def _lose(self, start: float, end: float, error: str) -> None:
        start = start if self.start is None else max(start, float(self.start))
        if end < start:
            return  # before the window
        self.error = self.error or f"{error} at {start:.3f} s"
        self.lost += end - start
        self._held.append((self.frames - 1, Break(start, end, "damaged", {"error": error})))

    def _release(self, before: int) -> Iterator[ShownFrame[Picture] | Break]:
        while self._held and self._held[0][0] < before:
            yield self._held.popleft()[1]


class SequentialFrames(SequentialSamples[Picture]):
    """Decodes all frames in order and gives every n-th one of the clean stretches. To be iterated once.

    Args:
        interval: n.
        opening: time of the first frame that the file promises, seconds.
        take: makes the picture of a frame that is kept, from the frame and its number among all frames.
    Attributes:
        cut_off: a file of raw pictures ends within a picture.
    """

    _PROMPT = 8
    """Where frames are missing at the beginning for 1 / 8 second or longer, a break reports this, as for clips."""

    def __init__(
        self, source: VideoSource, interval: int, *, opening: float, take: Callable[[av.VideoFrame, int], Picture]
    ) -> None:
        self._every = EveryNth(interval, Fraction(0), source.time_base)
        self.cut_off = False
        super().__init__(
            source,
            self._PROMPT,
            None,
            None,
            head=None,
            opening=opening,
            take=lambda frame: take(frame, self._every.number),
            max_seconds=math.inf,
        )

    def _damage(self, error: str, tick: int | None = None) -> None:
        if not is_raw(self.source.path.name):
            return super()._damage(error, tick)
        self.cut_off = True  # raw pictures depend on no others, and only the last one of a file can be incomplete
        self.error = self.error or error

    def _sampling(self, t0: Fraction) -> Sampling:
        self._every = EveryNth(self._every.interval, t0, self.source.time_base)
        return self._every
