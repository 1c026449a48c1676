"""Black bars: how much of a clip they cover, and where they lie in a whole source."""

from __future__ import annotations

from dataclasses import dataclass

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.video import Scan, VideoSource
from data_pipeline.ffmpeg import raise_if_out_of_memory

BAR = 12  # grey level of the brightest pixel of a bar; bars are flat, so less than for pictures


def bar_share(brightest: NDArray[np.uint8]) -> float:
    """Share of a picture [H, W], the brightest of each pixel over time, under black bars at its edges."""
    bars = bar_sizes(brightest)
    height, width = brightest.shape
    return 1.0 - (height - bars.top - bars.bottom) * (width - bars.left - bars.right) / (height * width)


def bar_sizes(brightest: NDArray[np.uint8]) -> Bars:
    """Rows at the top and bottom, columns at the left and right, that stay black; none for a wholly black picture."""
    rows = np.flatnonzero(brightest.max(axis=1) > BAR)
    columns = np.flatnonzero(brightest.max(axis=0) > BAR)
    if not len(rows):
        return Bars()
    height, width = brightest.shape
    return Bars(int(rows[0]), int(height - 1 - rows[-1]), int(columns[0]), int(width - 1 - columns[-1]))


@dataclass(frozen=True)
class Bars:
    """Black borders of the coded picture, in pixels."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


LOOKS = 8


def find_bars(source: VideoSource, scan: Scan) -> Bars:
    """Bars that are black in all of `LOOKS` keyframes spread over the scanned window, in coded pixels.

    The source is opened anew afterwards, so that what follows starts with a fresh decoder.
    """
    brightest: NDArray[np.uint8] | None = None
    for look in range(LOOKS):
        frame = _keyframe(source, scan.ticks[look * (len(scan.ticks) - 1) // LOOKS])
        if frame is None or frame.is_corrupt:
            continue
        grey = frame.to_ndarray(format="gray")
        if brightest is not None and brightest.shape != grey.shape:
            brightest = None  # the size changes in the middle: no bars hold for all of it
            break
        brightest = grey if brightest is None else np.maximum(brightest, grey)
    source.reopen()
    return Bars() if brightest is None else bar_sizes(brightest)


def _keyframe(source: VideoSource, tick: int) -> av.VideoFrame | None:
    try:
        source.container.seek(tick, stream=source.stream)
        return next(source.container.decode(source.stream), None)
    except av.error.FFmpegError as error:
        raise_if_out_of_memory(error)
        return None
