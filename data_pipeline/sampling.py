"""Sampling by presentation time: the frame shown at t0 + k / fps, for k = 0, 1, 2, ..., and nothing that is not shown.

Two ways through a file give the same samples:

* `_planned` knows the time stamps of all packets first, so it knows which frames will be wanted; the decoder then skips
  frames that are neither wanted nor referenced by others (exact, and up to a third cheaper on usual H.264).
* `_sequential` decodes every frame and learns the times as they come out. It serves containers without presentation
  times, codecs with invisible frames, and every file on which `_planned` met an error, a frame flagged as damaged or a
  missing frame.

Damage: a decode error at one frame spoils all frames up to the next clean keyframe, and the ones shown up to 16 frames
before it, the furthest that reordering reaches back (H.264 and HEVC keep at most 16 pictures). Spoiled frames are never
used; the stretch is reported as a `Break`. Times are on the file's own presentation timeline.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from typing import Generic, TypeVar

import av
import av.error

from data_pipeline.video import (
    PlanFailed,
    Scan,
    SourceTooLong,
    UndecodableVideo,
    VideoSource,
    describe,
    raise_if_out_of_memory,
)

REORDER = 16  # pictures; ITU-T H.264 A.3.1 and H.265 A.4.2 bound the decoded picture buffer
SAME_TIME = Fraction(1, 1_000_000)  # a frame this little after a sampling time still counts as shown then

Picture = TypeVar("Picture")
Take = Callable[[av.VideoFrame], Picture]


@dataclass
class Sample(Generic[Picture]):
    """What the source shows at one sampling time."""

    time: float  # t0 + k / fps
    pts: float  # presentation time of the frame shown then
    until: float  # when that frame gives way to the next
    picture: Picture


@dataclass
class Break:
    """A stretch without samples; no clip may reach across it."""

    start: float
    end: float
    reason: str  # fps_too_low, damaged or truncated
    measured: dict[str, float | str]


class Grid:
    """The sampling times t0 + k / fps before `end`, compared with time stamps in integers.

    Args:
        fps: samples a second.
        t0: first sampling time, seconds.
        end: samples lie before it, seconds; None for no limit.
        time_base: seconds a tick.
    """

    def __init__(self, fps: int, t0: Fraction, end: Fraction | None, time_base: Fraction) -> None:
        self.fps, self.t0, self.time_base = fps, t0, time_base
        shifted = t0 + SAME_TIME
        self._scale = time_base.numerator * shifted.denominator * fps
        self._offset = shifted.numerator * time_base.denominator * fps
        self._divisor = time_base.denominator * shifted.denominator
        self.count = None if end is None else max(0, math.ceil((end - t0) * fps))

    def first_at(self, tick: int) -> int:
        """Smallest k >= 0 whose time is not before the tick."""
        k = max(0, -((self._offset - tick * self._scale) // self._divisor))
        return k if self.count is None else min(k, self.count)

    def shown(self, tick: int, until: int | None) -> range:
        """All k at which a frame is shown that appears at `tick` and gives way at `until`.

        Of the last frame (None) nothing is certain but the moment it appears.
        """
        if until is not None:
            return range(self.first_at(tick), self.first_at(until))
        after = math.floor((tick * self.time_base + SAME_TIME - self.t0) * self.fps) + 1
        return range(self.first_at(tick), after if self.count is None else min(after, self.count))

    def time(self, k: int) -> float:
        """t0 + k / fps, seconds."""
        return float(self.t0 + Fraction(k, self.fps))


@dataclass
class Plan:
    """Which frames of a scanned window will be sampled."""

    grid: Grid
    wanted: list[tuple[int, int, range]]  # time stamp, the next frame's, and the sampling times they show
    scan: Scan

    @property
    def samples(self) -> int:
        """Sampling times inside the window."""
        return sum(len(ks) for *_, ks in self.wanted)

    @property
    def longest_run(self) -> int:
        """Most consecutive samples that are all different frames."""
        longest = run = 0
        for *_, ks in self.wanted:
            run += 1
            longest = max(longest, run)
            run = run if len(ks) == 1 else 0
        return longest


def plan_samples(source: VideoSource, scan: Scan, fps: int, start: Fraction | None, end: Fraction | None) -> Plan:
    """Choose the frames shown at the sampling times of a scanned window; exact only if `scan.planned`."""
    ticks, base = scan.ticks, source.time_base
    t0 = ticks[0] * base if start is None else max(start, ticks[0] * base)
    grid = Grid(fps, t0, end, base)
    begin = max(0, bisect_right(ticks, math.floor((t0 + SAME_TIME) / base)) - 1)
    wanted = []
    for tick, until in zip(ticks[begin:], [*ticks[begin + 1 :], None], strict=False):
        ks = grid.shown(tick, until)
        if ks:
            wanted.append((tick, tick + mean_gap(ticks) if until is None else until, ks))
        elif wanted and grid.count is not None and ks.start >= grid.count:
            break
    return Plan(grid, wanted, scan)


def mean_gap(ticks: list[int]) -> int:
    """Mean distance of neighbouring time stamps, at least one tick."""
    return max(1, (ticks[-1] - ticks[0]) // max(1, len(ticks) - 1))


def planned_samples(source: VideoSource, plan: Plan, take: Take[Picture]) -> Iterator[Sample[Picture] | Break]:
    """Decode just what the plan wants.

    Raises:
        PlanFailed: an error, a damaged frame or a missing frame; start again with `sequential_samples`.
    """
    base, codec = source.time_base, source.codec
    waiting = deque(plan.wanted)
    stamps = {tick for tick, *_ in waiting}
    early: dict[int, Picture] = {}  # a decoder that must guess how far frames are reordered may give some too soon
    for packet in source.packets(None, plan.scan.head):
        codec.skip_frame = "DEFAULT" if packet.pts in stamps or not packet.size else "NONREF"
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            raise_if_out_of_memory(error)
            raise PlanFailed from error
        for frame in frames:
            if frame.is_corrupt:
                raise PlanFailed
            if frame.pts not in stamps:
                continue
            early[frame.pts] = take(frame)
            while waiting and waiting[0][0] in early:
                tick, until, ks = waiting.popleft()
                yield from _emit(early.pop(tick), tick, until, ks, plan.grid, base)
            if not waiting:
                return
            if len(early) > REORDER:
                raise PlanFailed
    raise PlanFailed


def _emit(
    picture: Picture, tick: int, until: int, ks: range, grid: Grid, base: Fraction
) -> Iterator[Sample[Picture] | Break]:
    """One sample; where the same frame would be sampled again, a break up to the next frame instead of a repeat."""
    yield Sample(grid.time(ks.start), float(tick * base), float(until * base), picture)
    if len(ks) > 1:
        yield Break(grid.time(ks.start + 1), grid.time(ks.stop), "fps_too_low", {"gap": float((until - tick) * base)})


class SequentialSamples(Generic[Picture]):
    """Decode everything in order and keep the clean stretches. Iterate once; `lost` and `span` are complete then.

    Args:
        opening: time of the first packet, seconds; frames missing after it are reported.
        take: makes the picture that is kept of a frame.
        max_seconds: longer sources raise `SourceTooLong`.
    """

    def __init__(
        self,
        source: VideoSource,
        fps: int,
        start: Fraction | None,
        end: Fraction | None,
        *,
        opening: float,
        take: Take[Picture],
        max_seconds: float,
    ) -> None:
        self.source, self.fps, self.start, self.end, self.take = source, fps, start, end, take
        self.max_seconds = max_seconds
        self.lost = 0.0  # seconds spoiled
        self.span = 0.0  # seconds from the first frame to the last
        self.frames = 0  # frames the decoder gave
        self.error = ""  # the first decode error
        self._clock = opening  # seconds; the newest frame's time
        self._held: deque[tuple[int, Sample[Picture] | Break]] = deque()  # with the number of the frame behind each
        self._spoiled: Break | None = None
        self._spoiled_at = 0
        self._dates: list[int] = []  # a heap: decoding times of packets whose frames have not come out
        self._keyframes: deque[int] = deque(
            maxlen=64
        )  # time stamps of keyframe packets that damage cannot have reached

    def __iter__(self) -> Iterator[Sample[Picture] | Break]:
        base = self.source.time_base
        grid: Grid | None = None
        shown: tuple[int, av.VideoFrame] | None = None  # the frame on show, whose end is not known yet
        first = 0
        for frame in self._frames():
            tick = self._tick(frame)
            if tick is None:
                raise UndecodableVideo(f"{self.source.path.name}: its frames carry no presentation times")
            now = tick * base
            if grid is None:
                first = tick
                grid = Grid(self.fps, now if self.start is None else max(self.start, now), self.end, base)
                if now - self._clock >= Fraction(1, self.fps) and self._spoiled is None:
                    self._lose(self._clock, float(now), "nothing decodable before the first keyframe")
            elif shown is not None and tick <= shown[0]:
                self._damage(f"time stamps go back from {float(shown[0] * base):.3f} to {float(now):.3f} s", shown[0])
                continue
            if now - grid.t0 > self.max_seconds:
                raise SourceTooLong(float(now - grid.t0))
            if shown is not None:
                self._sample(shown, tick, grid.shown(shown[0], tick), grid)
            shown = (tick, frame)
            self.frames += 1
            self._clock = float(now)
            self._judge(frame)
            yield from self._release(self.frames - REORDER)
            if grid.count is not None and grid.first_at(tick) >= grid.count:
                break
        if shown is not None and grid is not None:
            tick = shown[0]
            gap = max(1, (tick - first) // max(1, self.frames - 1))
            self._sample(shown, tick + gap, grid.shown(tick, None), grid)
            self.span = float((tick - first) * base)
        self._recover()
        yield from self._release(self.frames + 1)

    def _frames(self) -> Iterator[av.VideoFrame]:
        """All frames the decoder gives; errors are noted as damage."""
        codec = self.source.codec
        codec.skip_frame = "DEFAULT"
        packets = self.source.packets(self.start)
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
        """When a frame appears; of a container without presentation times, the n-th frame gets the n-th date."""
        if self.source.counted:
            return heappop(self._dates) if self._dates else None
        return frame.pts if frame.pts is not None else frame.dts

    def _sample(self, shown: tuple[int, av.VideoFrame], until: int, ks: range, grid: Grid) -> None:
        if not ks or self._spoiled is not None:
            return
        tick, frame = shown
        for item in _emit(self.take(frame), tick, until, ks, grid, self.source.time_base):
            self._held.append((self.frames - 1, item))

    def _judge(self, frame: av.VideoFrame) -> None:
        """Spoil or clear what follows, from the newest frame."""
        if frame.is_corrupt:
            self._damage("the decoder flags a frame as damaged", frame.pts)
        elif self._spoiled is not None and frame.key_frame:
            # A keyframe that was decoded before the damage may still come out after it. Where frames are only counted,
            # a lost one misdates all that follow, so nothing after the damage can be trusted.
            if self.source.counted:
                return
            later = frame.pts in self._keyframes if frame.pts is not None else self.frames - self._spoiled_at > REORDER
            if later:
                self._recover()

    def _damage(self, error: str, tick: int | None = None) -> None:
        """Spoil what is held and what follows, up to the next keyframe after `tick`."""
        self.error = self.error or f"{error} at {self._clock:.3f} s"
        self._spoiled_at = self.frames
        # A keyframe that is shown after the damaged frame does not depend on it, whichever was decoded first.
        later = [key for key in self._keyframes if tick is not None and key > tick]
        self._keyframes = deque(later, maxlen=self._keyframes.maxlen)
        if self._spoiled is None:
            begin = next((item.time for _, item in self._held if isinstance(item, Sample)), self._clock)
            self._spoiled = Break(begin, begin, "damaged", {"error": error})
            self._held.clear()

    def _recover(self) -> None:
        if self._spoiled is not None:
            start, error = self._spoiled.start, str(self._spoiled.measured["error"])
            self._spoiled = None
            self._lose(start, max(self._clock, start), error)

    def _lose(self, start: float, end: float, error: str) -> None:
        self.error = self.error or f"{error} at {start:.3f} s"
        self.lost += end - start
        self._held.append((self.frames - 1, Break(start, end, "damaged", {"error": error})))

    def _release(self, before: int) -> Iterator[Sample[Picture] | Break]:
        while self._held and self._held[0][0] < before:
            yield self._held.popleft()[1]
