"""The private part of PySceneDetect that is used, the score of the frame that a detector saw last, and its import.

In public, PySceneDetect gives the score only to a StatsManager. With one, the detector also looks for edges in every
picture, and the manager keeps the scores of all frames for ever. `tests/data_pipeline/cut/test_cut_detector.py` fails
when PySceneDetect changes this.

PySceneDetect starts `ffmpeg` while it is imported, to see whether there is one, although no detector uses it: 0.1 s in
each process that cuts, and a program from the PATH. Here it is imported with a PATH on which no program is found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _no_programs() -> Iterator[None]:
    """No program can be started by its name alone."""
    path = os.environ.get("PATH")
    os.environ["PATH"] = os.devnull  # an empty PATH would mean the current folder
    try:
        yield
    finally:
        if path is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = path


with _no_programs():
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

__all__ = ["AdaptiveDetector", "FrameTimecode", "last_score"]


def last_score(detector: ContentDetector) -> float:
    """content_val of the last frame against the one before it, 0 to 255; 0 for the first frame."""
    return float(detector._frame_score or 0.0)
