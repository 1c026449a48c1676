"""One clip at a random place of each video, as published protocols draw them, and the same clips in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draw:
    """How clips are drawn.

    Attributes:
        items: videos, or stored clips of a dataset, from the first one on, of which one clip each is taken.
        seed: decides the places.
    """

    items: int
    seed: int


def drawn_start(draw: Draw, name: str, stretches: Iterable[range], frames: int) -> int | None:
    """The number of the first frame of a video's clip: each possible one with the same probability.

    It follows from the seed, the name and the frames of the video alone.

    Args:
        name: of the video.
        stretches: numbers of frames that follow one another.
        frames: of the clip, which lies within one stretch.
    Returns:
        None where no stretch is long enough.
    """
    starts = [range(stretch.start, stretch.stop - frames + 1) for stretch in stretches if len(stretch) >= frames]
    if not starts:
        return None
    words = np.frombuffer(hashlib.sha256(name.encode(errors="surrogateescape")).digest(), np.uint32)
    place = int(np.random.default_rng([draw.seed, *words.tolist()]).integers(sum(map(len, starts))))
    for possible in starts:
        if place < len(possible):
            return possible[place]
        place -= len(possible)
    raise AssertionError("the place is smaller than the number of starts")
