"""The result of cutting one source row: clips, and for every other stretch a reason with the values measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Measured = dict[str, float | str]


@dataclass(kw_only=True)
class EncodedClip:
    """One accepted clip: frame k shows what the source shows at start + k / fps."""

    number: int  # position among all candidates of the row, accepted or not
    data: bytes  # the mp4
    start: float
    end: float  # start + frames / fps, or earlier when the last frame gives way to another shot or the source ends
    frames: int
    height: int
    width: int
    fps_error: float  # largest |source_pts[k] - (start + k / fps)|, seconds
    source_pts: list[float]  # presentation time of the source frame behind each stored frame, seconds
    measures: dict[str, float]  # the values that the gates judged
    phash: str  # 16 hex digits, for near-duplicates by Hamming distance


@dataclass(kw_only=True)
class Rejection:
    """A stretch of the source, or the entire row where `number` is None, that did not become a clip.

    The reasons of a row are too_long and outside_source, and when they hold for all of it too_short, too_small,
    too_large, aspect and fps_too_low. The reasons of a stretch are these five and hdr, rotation, interlaced, damaged,
    clock_restarts, truncated, outside_source for the end of a window, black, letterbox, cut_inside, frozen, motion and
    encode_loss. `source/row_rules.py` has the reasons that follow from a caption.
    """

    number: int | None
    start: float
    end: float
    reason: str
    measured: Measured = field(default_factory=dict)


@dataclass(kw_only=True)
class CutResult:
    """All that came of one row. Clips and rejections are numbered together, in order of time."""

    clips: list[EncodedClip]
    rejected: list[Rejection]
    source: dict[str, Any]  # width, height, duration, fps, codec, pixel_format, sar, container, rotation
