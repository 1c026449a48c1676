"""The one private part of PySceneDetect that this project uses: the score of the frame that a detector saw last.

In public, PySceneDetect gives the score only to a StatsManager. With one, the detector also looks for edges in every
picture, and the manager keeps the scores of all frames for ever. `tests/data_pipeline/cut/test_cut_detector.py` fails
when PySceneDetect changes this.
"""

from __future__ import annotations

from scenedetect.detectors import ContentDetector


def last_score(detector: ContentDetector) -> float:
    """content_val of the last frame against the one before it, 0 to 255; 0 for the first frame."""
    return float(detector._frame_score or 0.0)
