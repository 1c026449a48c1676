"""All frames of a video that has no breaks, for tests that look at what a script has written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut import frames


@dataclass
class WholeVideo:
    """An open video. Its frames are uint8 [H, W, 3]."""

    reader: frames.FrameReader

    @property
    def fps(self) -> Fraction:
        return self.reader.fps

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for frame in self.reader.frames(1, lambda pixels: pixels):
            assert not isinstance(frame, frames.Break), frames.break_text(frame)
            yield frame.picture


@contextmanager
def open_frames(path: Path) -> Iterator[WholeVideo]:
    with frames.open_frames(path) as reader:
        yield WholeVideo(reader)
