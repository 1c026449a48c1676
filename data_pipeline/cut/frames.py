"""Every n-th frame of a video as RGB, upright and in square pixels, for what looks at whole videos and cuts no clips.

A video is read as the cutter reads it: the same track, frames, first fields, colours, clean stretches and refusals.
Where `cut_clips` reports that a stretch is rejected, there is a `Break` here. Frames are uint8 [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Generic

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.cutter import TRUNCATED
from data_pipeline.cut.geometry import ClipRefused, RgbPictures
from data_pipeline.cut.sampling import Break, Picture, ShownFrame
from data_pipeline.cut.sequential import SequentialFrames
from data_pipeline.cut.video import UndecodableVideo, VideoSource
from data_pipeline.ffmpeg import describe, raise_if_out_of_memory

__all__ = ["Break", "FrameReader", "NumberedFrame", "UndecodableVideo", "break_text", "open_frames"]


_NO_LIMIT = 1e9  # seconds


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
            UndecodableVideo: no frame could be decoded.
        """
        source = self._source
        rgb = RgbPictures(source.sar, top_first=source.top_first, transfer=source.transfer)

        def picture(frame: av.VideoFrame, number: int) -> NumberedFrame[Picture] | ClipRefused:
            shown = rgb(frame)
            return shown if isinstance(shown, ClipRefused) else NumberedFrame(number, 0.0, take(shown.to_ndarray()))

        samples = SequentialFrames(source, interval, opening=self._opening(), take=picture)
        try:
            yield from _refusals_as_breaks(samples, 1 / float(self.fps))
        except av.error.FFmpegError as error:
            raise_if_out_of_memory(error)
            raise UndecodableVideo(f"{source.path.name}: {describe(error)}") from error
        if not samples.frames:
            raise UndecodableVideo(
                f"{source.path.name}: no frame could be decoded: {samples.error or 'the stream is empty'}"
            )
        declared = source.declared_end
        if declared is not None and declared - samples.end_time > TRUNCATED:
            yield Break(samples.end_time, declared, "truncated", {"missing": declared - samples.end_time})

    def _opening(self) -> float:
        """The time of the first frame that the file promises, seconds."""
        source = self._source
        begin = source.stream.start_time
        if begin is None:  # the header does not say it, so the packets must
            ticks = source.scan(None, None, _NO_LIMIT).ticks
            source.reopen()
            begin = ticks[0] if ticks else 0
        return float(begin * source.time_base)


def _refusals_as_breaks(
    samples: SequentialFrames[NumberedFrame[Picture] | ClipRefused], frame_seconds: float
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
