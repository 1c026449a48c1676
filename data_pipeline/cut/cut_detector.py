"""Cuts between sampled frames, by PySceneDetect's adaptive detector on 64 x 64 thumbnails.

At 8 frames a second, fast motion changes a picture as much as many a cut does at 25, so a fixed threshold on the change
splits one moving shot into several. The adaptive detector asks for a change that stands out against the changes of the
two frames before and the two frames after. It cannot judge a frame without such neighbours. So this class shows the
first and the last thumbnail to the detector three times, which adds changes of zero at both ends.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from data_pipeline.cut.scenedetect_private import AdaptiveDetector, FrameTimecode, last_score

SIDE = 64
LAG = 2  # thumbnails after a cut that the detector needs before it reports the cut


class Thumbnails:
    """Makes BGR thumbnails [64, 64, 3]. Each source needs an instance of its own, which sets up its scaler once."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()

    def __call__(self, picture: av.VideoFrame) -> NDArray[np.uint8]:
        small = self._scaler.reformat(picture, SIDE, SIDE, "bgr24", interpolation=Interpolation.AREA, threads=1)
        plane = small.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(SIDE, plane.line_size)[:, : SIDE * 3]
        return rows.reshape(SIDE, SIDE, 3)


class CutDetector:
    """Takes thumbnails in order and reports each cut at most `LAG` thumbnails late.

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
        self.change = 0.0  # content_val between the last two thumbnails, 0 to 255

    def add(self, thumbnail: NDArray[np.uint8]) -> list[int]:
        """Take one thumbnail; return those (counted from 0) now known to be the first of a shot."""
        if self._last is None:
            for _ in range(LAG):
                self._feed(thumbnail)
        self._last = thumbnail
        return self._feed(thumbnail)

    def flush(self) -> list[int]:
        """The cuts among the last thumbnails. To be called once, at the end."""
        if self._last is None:
            return []
        return [cut for _ in range(LAG) for cut in self._feed(self._last)]

    def _feed(self, thumbnail: NDArray[np.uint8]) -> list[int]:
        cuts = self._detector.process_frame(FrameTimecode(self._fed, fps=float(self.fps)), thumbnail)
        self._fed += 1
        self.change = last_score(self._detector)
        return [cut.frame_num - LAG for cut in cuts if cut.frame_num > LAG]
