"""Black bars: which share of a clip they cover, and where they lie in a whole source."""

from __future__ import annotations

from dataclasses import dataclass

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.packet_times import Scan
from data_pipeline.cut.video import VideoSource
from data_pipeline.ffmpeg import raise_if_out_of_memory

BAR = 12  # grey level of the brightest pixel of a bar. Bars are flat, so this is less than gates.BLACK


def bar_share(brightest: NDArray[np.uint8]) -> float:
    """Share of a picture that black bars at its edges cover.

    Args:
        brightest: the highest grey level of each pixel over time, [H, W].
    """
    bars = bar_sizes(brightest)
    height, width = brightest.shape
    return 1.0 - (height - bars.top - bars.bottom) * (width - bars.left - bars.right) / (height * width)


def bar_sizes(brightest: NDArray[np.uint8]) -> Bars:
    """How many rows and columns stay black at the edges; a wholly black picture has no bars.

    Args:
        brightest: the highest grey level of each pixel over time, [H, W].
    """
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


KEYFRAMES = 8


def find_bars(source: VideoSource, scan: Scan) -> Bars:
    """Bars that are black in all of `KEYFRAMES` keyframes spread over the scanned window, in coded pixels.

    The source is opened again at the end, so that the next decoding starts with a fresh decoder.
    """
    brightest: NDArray[np.uint8] | None = None
    for k in range(KEYFRAMES):
        frame = _keyframe(source, scan.ticks[k * (len(scan.ticks) - 1) // KEYFRAMES])
        if frame is None or frame.is_corrupt:
            continue
        grey = frame.to_ndarray(format="gray")
        if brightest is not None and brightest.shape != grey.shape:
            brightest = None  # the size changes in the middle, so no bars hold for the whole window
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
