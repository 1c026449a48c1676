"""Sampling by presentation time: the frame that the source shows at t0 + k / fps, for k = 0, 1, 2, ..., and no other.

Two ways through a file give the same samples:

* `planned_samples` gets the time stamps of all packets first, so it knows which frames to sample. The decoder then
  skips the frames that are neither sampled nor referenced by others. This is exact, and on usual H.264 up to a third
  cheaper.
* `sequential.SequentialSamples` decodes every frame and learns its time when the frame comes out. It serves containers
  without presentation times, codecs with invisible frames, and every file in which `planned_samples` met an error, a
  frame flagged as damaged or a missing frame.

Times are on the file's own presentation timeline.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

import av
import av.error

from data_pipeline.cut.packet_times import REORDER, Scan
from data_pipeline.cut.video import PlanFailed, VideoSource
from data_pipeline.ffmpeg import raise_if_out_of_memory

TRUNCATED = 1.0  # the end that is missing, against the header's duration, is told from so many seconds on
CUT_OFF = "the file ends before its container does"  # the error of a truncated stretch whose length nobody knows
SAME_TIME = Fraction(1, 1_000_000)  # seconds; a frame so little after a sampling time still counts as shown then

Picture = TypeVar("Picture")
Take = Callable[[av.VideoFrame], Picture]


@dataclass
class ShownFrame(Generic[Picture]):
    """The frame that the source shows at one sampling time. Times are in seconds."""

    time: float  # the sampling time, t0 + k / fps
    pts: float  # presentation time of the frame
    until: float  # time at which the frame gives way to the next one
    picture: Picture


@dataclass
class Break:
    """A stretch without samples, in seconds; no clip may reach across it."""

    start: float
    end: float
    reason: str  # fps_too_low, damaged or clock_restarts
    measured: dict[str, float | str]


class Sampling(Protocol):
    """Which frames of a source are samples. Samples are numbered k = 0, 1, 2, ..."""

    t0: Fraction
    """Seconds; no frame that gives way before this time is a sample."""

    def shown(self, tick: int, until: int | None) -> range:
        """All k of the frame that appears at `tick` and gives way at `until`, which is None for the last frame.

        To be called once for each frame, in order.
        """
        ...

    def time(self, k: int) -> float:
        """Seconds at which the sample is due. `k` is one of the newest that `shown` gave."""
        ...

    def ended(self, tick: int) -> bool:
        """Whether no frame that appears at `tick` or later is a sample."""
        ...


class EveryNth:
    """Every n-th of the shown frames, at whatever time it is shown.

    Args:
        interval: n.
        t0: time of the first frame, seconds.
        time_base: seconds a tick.
    """

    def __init__(self, interval: int, t0: Fraction, time_base: Fraction) -> None:
        self.interval, self.t0, self.time_base = interval, t0, time_base
        self.number = -1
        """Of the newest frame, counted from 0 among all."""
        self._tick = 0

    def shown(self, tick: int, until: int | None) -> range:
        """See `Sampling`."""
        self.number, self._tick = self.number + 1, tick
        k, rest = divmod(self.number, self.interval)
        return range(0) if rest else range(k, k + 1)

    def time(self, k: int) -> float:
        """The time at which the newest frame is shown, seconds."""
        return float(self._tick * self.time_base)

    def ended(self, tick: int) -> bool:
        """Never: all frames count."""
        return False


class Grid:
    """The sampling times t0 + k / fps before `end`. They are compared with time stamps in integers, without rounding.

    Args:
        fps: samples a second.
        t0: first sampling time, seconds.
        end: all samples lie before this time, seconds; None for no limit.
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
        """The smallest k >= 0 whose time is not before the tick."""
        k = max(0, -((self._offset - tick * self._scale) // self._divisor))
        return k if self.count is None else min(k, self.count)

    def shown(self, tick: int, until: int | None) -> range:
        """All k at which a frame is shown that appears at `tick` and gives way at `until`.

        `until` is None for the last frame, of which only the time of its appearance is certain.
        """
        if until is not None:
            return range(self.first_at(tick), self.first_at(until))
        after = math.floor((tick * self.time_base + SAME_TIME - self.t0) * self.fps) + 1
        return range(self.first_at(tick), after if self.count is None else min(after, self.count))

    def time(self, k: int) -> float:
        """t0 + k / fps, seconds."""
        return float(self.t0 + Fraction(k, self.fps))

    def ended(self, tick: int) -> bool:
        """Whether all samples lie before the tick."""
        return self.count is not None and self.first_at(tick) >= self.count


@dataclass(frozen=True)
class TickTimes:
    """Sampling times that are times of frames. It gives no more of `Sampling` than a plan needs."""

    ticks: list[int]
    time_base: Fraction

    def time(self, k: int) -> float:
        """Seconds of sample k."""
        return float(self.ticks[k] * self.time_base)


@dataclass
class FramePlan:
    """The frames of a scanned window that will be sampled."""

    grid: Grid | TickTimes
    frames: list[tuple[int, int, range]]  # time stamp, the next frame's time stamp, and the sampling times shown
    scan: Scan

    @property
    def samples(self) -> int:
        """Number of sampling times inside the window."""
        return sum(len(ks) for *_, ks in self.frames)

    @property
    def longest_run(self) -> int:
        """The largest number of consecutive samples that are all different frames."""
        longest = run = 0
        for *_, ks in self.frames:
            run += 1
            longest = max(longest, run)
            run = run if len(ks) == 1 else 0
        return longest


def plan_samples(source: VideoSource, scan: Scan, fps: int, start: Fraction | None, end: Fraction | None) -> FramePlan:
    """Choose the frames that are shown at the sampling times of a scanned window. Exact only if `scan.planned`."""
    ticks, base = scan.ticks, source.time_base
    t0 = ticks[0] * base if start is None else max(start, ticks[0] * base)
    grid = Grid(fps, t0, end, base)
    begin = max(0, bisect_right(ticks, math.floor((t0 + SAME_TIME) / base)) - 1)
    frames = []
    for tick, until in zip(ticks[begin:], [*ticks[begin + 1 :], None], strict=False):
        ks = grid.shown(tick, until)
        if ks:
            frames.append((tick, tick + mean_gap(ticks) if until is None else until, ks))
        elif frames and grid.count is not None and ks.start >= grid.count:
            break
    return FramePlan(grid, frames, scan)


def plan_every(source: VideoSource, scan: Scan, interval: int) -> FramePlan:
    """Choose every n-th frame of a scanned source. Exact only if `scan.planned`."""
    ticks = scan.ticks
    ends = [*ticks[1:], ticks[-1] + mean_gap(ticks)]
    chosen = range(0, len(ticks), interval)
    frames = [(ticks[n], ends[n], range(k, k + 1)) for k, n in enumerate(chosen)]
    return FramePlan(TickTimes([ticks[n] for n in chosen], source.time_base), frames, scan)


def mean_gap(ticks: list[int]) -> int:
    """Mean distance of neighbouring time stamps, at least one tick."""
    return max(1, (ticks[-1] - ticks[0]) // max(1, len(ticks) - 1))


def planned_samples(source: VideoSource, plan: FramePlan, take: Take[Picture]) -> Iterator[ShownFrame[Picture] | Break]:
    """Decode the frames of the plan, and as few others as possible.

    Raises:
        PlanFailed: the decoder failed, or a frame is damaged or missing; `SequentialSamples` can still read the file.
    """
    base, codec = source.time_base, source.codec
    waiting = deque(plan.frames)
    stamps = {tick for tick, *_ in waiting}
    early: dict[int, Picture] = {}  # a decoder has to guess how far frames are reordered, and may give some too soon
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
                yield from shown_once(early.pop(tick), tick, until, ks, plan.grid, base)
            if not waiting:
                return
            if len(early) > REORDER:
                raise PlanFailed
    raise PlanFailed


def shown_once(
    picture: Picture, tick: int, until: int, ks: range, grid: Sampling | TickTimes, base: Fraction
) -> Iterator[ShownFrame[Picture] | Break]:
    """One sample, and when the same frame is shown at more sampling times, a break up to the next frame.

    No clip holds the same frame twice, so a source that is too slow gives breaks in place of repeats.
    """
    yield ShownFrame(grid.time(ks.start), float(tick * base), float(until * base), picture)
    if len(ks) > 1:
        yield Break(grid.time(ks.start + 1), grid.time(ks.stop), "fps_too_low", {"gap": float((until - tick) * base)})
