"""Black bars of a whole source, looked for before it is cut, in a few keyframes; only for `clip.letterbox=crop`."""

from __future__ import annotations

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from data_pipeline.filters import bar_sizes
from data_pipeline.geometry import Bars
from data_pipeline.video import Scan, VideoSource, raise_if_out_of_memory

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
