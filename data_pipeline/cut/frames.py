"""Every n-th frame of a video as RGB, upright and in square pixels, for what looks at whole videos and cuts no clips.

A video is read as the cutter reads it: the same track, frames, first fields, colours, clean stretches and refusals.
Where `cut_clips` reports that a stretch is rejected, there is a `Break` here. Frames are uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Generic

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.geometry import ClipRefused, RgbPictures
from data_pipeline.cut.sampling import (
    CUT_OFF,
    REORDER,
    TRUNCATED,
    Break,
    EveryNth,
    Picture,
    Sampling,
    ShownFrame,
    plan_every,
    planned_samples,
)
from data_pipeline.cut.sequential import SequentialSamples
from data_pipeline.cut.video import PlanFailed, UndecodableVideo, VideoSource
from data_pipeline.ffmpeg import describe, raise_if_out_of_memory
from data_pipeline.raw_video import is_raw

__all__ = ["Break", "FrameReader", "NumberedFrame", "UndecodableVideo", "break_text", "open_frames"]


_NO_LIMIT = 1e9  # seconds
TRUNCATED_REASON = "truncated"
_GIVEN = ClipRefused("given", ())
"""Stands for a frame that was given before an error made a second pass necessary; it is not taken again."""


@dataclass(frozen=True)
class NumberedFrame(Generic[Picture]):
    """One frame that was taken."""

    number: int  # counted from 0 among all frames that are shown
    time: float  # presentation time, seconds
    picture: Picture


class FrameReader:
    """The frames of an open video. `open_frames` makes it."""

    def __init__(self, source: VideoSource, fps: Fraction) -> None:
        self._source = source
        self.fps = fps
        """The file's average number of frames a second."""

    def frames(
        self, interval: int, take: Callable[[NDArray[np.uint8]], Picture]
    ) -> Iterator[NumberedFrame[Picture] | Break]:
        """Every n-th frame in order, and a `Break` wherever frames are missing. To be called once.

        Up to 17 frames are held back, because a later error may show that they are spoiled; so `take` should give
        something small.

        Args:
            interval: n, 1 or more.
            take: makes what is kept of a frame's pixels, uint8 [H, W, 3].
        Raises:
            UndecodableVideo: no frame could be decoded, or one is of a size that no picture can have.
        """
        try:
            yield from self._frames(interval, take)
        except av.error.FFmpegError as error:
            raise_if_out_of_memory(error)
            raise UndecodableVideo(f"{self._source.path.name}: {describe(error)}") from error

    def _frames(
        self, interval: int, take: Callable[[NDArray[np.uint8]], Picture]
    ) -> Iterator[NumberedFrame[Picture] | Break]:
        source = self._source
        rgb = RgbPictures(source.sar, top_first=source.top_first, transfer=source.transfer)

        def picture(frame: av.VideoFrame, number: int) -> NumberedFrame[Picture] | ClipRefused:
            shown = rgb(frame)
            return shown if isinstance(shown, ClipRefused) else NumberedFrame(number, 0.0, take(shown.to_ndarray()))

        scan = None if is_raw(source.path.name) else source.scan(None, None, _NO_LIMIT)
        source.reopen()
        given_until = told_until = -math.inf  # seconds: of the newest frame that was given, and of the newest event
        if scan is not None and scan.planned:
            plan = plan_every(source, scan, interval)
            try:
                planned = planned_samples(source, plan, lambda frame: picture(frame, 0))
                # An error spoils up to 16 frames before it, so as many are held back, as in a sequential pass.
                held: deque[tuple[int, NumberedFrame[Picture] | Break]] = deque()
                for event in _refusals_as_breaks(planned, 1 / float(self.fps)):
                    begin = event.start if isinstance(event, Break) else event.time
                    number = bisect_left(scan.ticks, begin / float(source.time_base) - 0.5)
                    held.append((number, event if isinstance(event, Break) else replace(event, number=number)))
                    while held[0][0] < number - REORDER:
                        _, ready = held.popleft()
                        if isinstance(ready, Break):
                            told_until = ready.end
                        else:
                            given_until = told_until = ready.time
                        yield ready
                for _, ready in held:
                    yield ready
                yield from self._missing_end(float(scan.end * source.time_base), scan.packets)
                return
            except PlanFailed:
                source.reopen()
        opening = float((scan.ticks[0] if scan is not None and scan.ticks else 0) * source.time_base)

        def later(frame: av.VideoFrame, number: int, time: float) -> NumberedFrame[Picture] | ClipRefused:
            return picture(frame, number) if time > given_until else _GIVEN

        samples = _SequentialFrames(source, interval, opening=opening, take=later)
        for event in _refusals_as_breaks(samples, 1 / float(self.fps)):
            if isinstance(event, NumberedFrame) or (event.reason != _GIVEN.reason and event.end > told_until):
                yield event
        if not samples.frames:
            raise UndecodableVideo(
                f"{source.path.name}: no frame could be decoded: {samples.error or 'the stream is empty'}"
            )
        if samples.cut_off:
            begin = samples.end_time
            yield Break(begin, begin + 1 / float(self.fps), TRUNCATED_REASON, {"error": "the file ends within a frame"})
        else:
            yield from self._missing_end(samples.end_time, 0 if scan is None or samples.error else scan.packets)

    def _missing_end(self, found: float, packets: int) -> Iterator[Break]:
        """What the header or the container promises after the last frame, which ends at `found` seconds.

        Args:
            packets: all that were found and decoded without an error.
        """
        declared = self._source.declared_end
        if declared is not None and declared - found > TRUNCATED and not self._source.has_all(packets):
            yield Break(found, declared, TRUNCATED_REASON, {"missing": declared - found})
        elif self._source.cut_off:
            yield Break(found, found + 1 / float(self.fps), TRUNCATED_REASON, {"error": CUT_OFF})


class _SequentialFrames(SequentialSamples[Picture]):
    """Decodes all frames in order and gives every n-th one of the clean stretches. To be iterated once.

    Args:
        interval: n.
        opening: time of the first frame that the file promises, seconds.
        take: makes the picture of a frame that is kept, from the frame, its number among all frames and its time in
            seconds.
    Attributes:
        cut_off: a file of raw pictures ends within a picture.
    """

    _PROMPT = 8
    """Where frames are missing at the beginning for 1 / 8 second or longer, a break reports this, as for clips."""

    def __init__(
        self,
        source: VideoSource,
        interval: int,
        *,
        opening: float,
        take: Callable[[av.VideoFrame, int, float], Picture],
    ) -> None:
        self._every = EveryNth(interval, Fraction(0), source.time_base)
        self.cut_off = False
        super().__init__(
            source,
            self._PROMPT,
            None,
            None,
            head=None,
            since=None,
            prompt=False,
            opening=opening,
            take=lambda frame: take(frame, self._every.number, self._every.time(0)),
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


def _refusals_as_breaks(
    samples: Iterable[ShownFrame[NumberedFrame[Picture] | ClipRefused] | Break], frame_seconds: float
) -> Iterator[NumberedFrame[Picture] | Break]:
    """The frames and breaks, where neighbouring frames that are refused for the same reason are one break."""
    refused: ClipRefused | None = None
    gap: Break | None = None
    for event in samples:
        if isinstance(event, ShownFrame) and isinstance(event.picture, ClipRefused):
            if gap is None or refused != event.picture:
                if gap is not None:
                    yield gap
                refused = event.picture
                gap = Break(event.time, event.time, refused.reason, dict(refused.measured))
            gap.end = event.until if event.until > event.time else event.time + frame_seconds
            continue
        if gap is not None:
            yield gap
            refused = gap = None
        if isinstance(event, Break):
            yield event
        else:
            assert isinstance(event.picture, NumberedFrame)
            yield NumberedFrame(event.picture.number, event.time, event.picture.picture)
    if gap is not None:
        yield gap


def break_text(gap: Break) -> str:
    """A break as a user reads it: `1.20 to 1.84 s: damaged (error invalid data)`."""
    measured = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in gap.measured.items()
    )
    return f"{gap.start:.2f} to {gap.end:.2f} s: {gap.reason}" + (f" ({measured})" if measured else "")


@contextmanager
def open_frames(path: str | Path) -> Iterator[FrameReader]:
    """Open a video file, or a raw `.yuv` file of 8 bit 4:2:0, whose size and rate are in its name.

    Raises:
        UndecodableVideo: the file does not exist, holds no video, or does not say its rate; the message names it.
    """
    if not Path(path).exists():
        raise UndecodableVideo(f"{path} cannot be opened as a video: no such file")
    with VideoSource(path) as source:
        fps = source.fps
        if fps is None:
            raise UndecodableVideo(
                f"{source.path.name} does not say its frame rate; remux it, for instance with ffmpeg -i IN -c copy OUT"
            )
        yield FrameReader(source, fps)
