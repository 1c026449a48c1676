"""Sampling by presentation time: the frame shown at t0 + k / fps, for k = 0, 1, 2, ..., and nothing that is not shown.

Two ways through a file give the same samples:

* `planned_samples` knows the time stamps of all packets first, so it knows which frames will be wanted; the decoder
  then skips frames that are neither wanted nor referenced by others (exact, and up to a third cheaper on usual H.264).
* `sequential.SequentialSamples` decodes every frame and learns the times as they come out. It serves containers without
  presentation times, codecs with invisible frames, and every file on which `planned_samples` met an error, a frame
  flagged as damaged or a missing frame.

Times are on the file's own presentation timeline.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

import av
import av.error

from data_pipeline.cut.video import PlanFailed, Scan, VideoSource
from data_pipeline.ffmpeg import raise_if_out_of_memory

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
        PlanFailed: an error, a damaged frame or a missing frame; start again with `SequentialSamples`.
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
                yield from shown_once(early.pop(tick), tick, until, ks, plan.grid, base)
            if not waiting:
                return
            if len(early) > REORDER:
                raise PlanFailed
    raise PlanFailed


def shown_once(
    picture: Picture, tick: int, until: int, ks: range, grid: Grid, base: Fraction
) -> Iterator[Sample[Picture] | Break]:
    """One sample; where the same frame would be sampled again, a break up to the next frame instead of a repeat."""
    yield Sample(grid.time(ks.start), float(tick * base), float(until * base), picture)
    if len(ks) > 1:
        yield Break(grid.time(ks.start + 1), grid.time(ks.stop), "fps_too_low", {"gap": float((until - tick) * base)})
