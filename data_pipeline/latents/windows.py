"""Which windows of a clip are encoded: a pure function of the settings, the clip's key and its number of frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from data_pipeline.latents.config import WindowChoice
from data_pipeline.latents.packing import Window
from data_pipeline.read.order import draw

_PURPOSE_WINDOWS = 5
"""The second word of the Philox key, as in read/order.py. PURPOSE_LATENT there has the same number, which cannot change
any more; the two share no draw, because their counters begin with hashes of different keys."""


def window_span(settings: Mapping[str, Any]) -> int:
    """Stored frames from the first to the last of a window: a clip needs this many.

    Args:
        settings: of the windows, as the plan has them.
    """
    return int((settings["frames"] - 1) * settings["frame_stride"] + 1)


def windows_of(settings: Mapping[str, Any], key: str, frames: int) -> list[Window]:
    """The windows of one clip, by rising first frame, each directly before its mirrored twin.

    Args:
        settings: of the windows, as the plan has them.
        key: of the clip; together with the seed it decides random windows, so they do not depend on other clips.
        frames: of the clip.
    Returns:
        No window when the clip is too short for one.
    """
    starts = _starts(settings, key, frames - window_span(settings) + 1)
    twins = (False, True) if settings["mirrored"] else (False,)
    chosen = [(start, mirrored) for start in starts for mirrored in twins]
    return [
        Window(number=number, first_frame=start, mirrored=mirrored) for number, (start, mirrored) in enumerate(chosen)
    ]


def _starts(settings: Mapping[str, Any], key: str, places: int) -> list[int]:
    """First frames, rising.

    Args:
        places: how many first frames are possible; 0 or less when the clip is too short.
    """
    choice = WindowChoice(settings["choose"])
    if choice is WindowChoice.first:
        return list(range(min(1, max(0, places))))
    if choice is WindowChoice.all:
        return list(range(0, places, window_span(settings)))
    if choice is WindowChoice.stride:
        return list(range(0, places, settings["every"]))
    if places <= settings["count"]:
        return list(range(places))
    counter = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    words = draw(settings["seed"], _PURPOSE_WINDOWS, (counter, 0, 0), places)
    return sorted(words.argsort(kind="stable")[: settings["count"]].tolist())
