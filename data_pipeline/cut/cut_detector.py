"""Cuts between sampled frames, by PySceneDetect's adaptive detector on 64 x 64 thumbnails.

At 8 frames a second fast motion changes a picture as much as many a cut does at 25, so a fixed threshold on the change
splits one moving shot into several. The adaptive detector asks for a change that stands out against the two frames
before and after. It judges no frame that lacks such neighbours; here the first and the last thumbnail are therefore
shown to it three times, which adds changes of zero.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

SIDE = 64
LAG = 2  # thumbnails the detector wants to see after a cut


class Thumbnails:
    """Makes [64, 64, 3] BGR thumbnails; one per source, because the scaler is set up once."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> NDArray[np.uint8]:
        small = self._scaler.reformat(picture, SIDE, SIDE, "bgr24", interpolation=Interpolation.AREA, threads=1)
        plane = small.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(SIDE, plane.line_size)[:, : SIDE * 3]
        return rows.reshape(SIDE, SIDE, 3)


class CutDetector:
    """Feed thumbnails in order; cuts come out at most `LAG` thumbnails late.

    Args:
        ratio: a cut changes the picture this many times more than the frames around it.
        change: and by at least this much (PySceneDetect's content_val, 0 to 255).
    """

    def __init__(self, fps: int, ratio: float, change: float) -> None:
        self.fps = fps
        self._detector = AdaptiveDetector(
            adaptive_threshold=ratio, min_scene_len=1, window_width=LAG, min_content_val=change
        )
        self._fed = 0
        self._last: NDArray[np.uint8] | None = None
        self.change = 0.0  # between the last two thumbnails

    def add(self, thumbnail: NDArray[np.uint8]) -> list[int]:
        """Numbers of thumbnails, counted from 0, now known to begin a new shot."""
        if self._last is None:
            for _ in range(LAG):
                self._feed(thumbnail)
        self._last = thumbnail
        return self._feed(thumbnail)

    def flush(self) -> list[int]:
        """Cuts among the last thumbnails; call once, at the end."""
        if self._last is None:
            return []
        return [cut for _ in range(LAG) for cut in self._feed(self._last)]

    def _feed(self, thumbnail: NDArray[np.uint8]) -> list[int]:
        cuts = self._detector.process_frame(FrameTimecode(self._fed, fps=float(self.fps)), thumbnail)
        self._fed += 1
        self.change = float(self._detector._frame_score or 0.0)
        return [cut.frame_num - LAG for cut in cuts if cut.frame_num > LAG]
