"""What cutting one source row gives: clips, and a reason with measured values for every stretch that became none."""

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
    end: float  # start + frames / fps, or earlier where the last frame gives way to another shot or the source ends
    frames: int
    height: int
    width: int
    fps_error: float  # largest |source_pts[k] - (start + k / fps)|, seconds
    source_pts: list[float]  # presentation time of the source frame behind each stored frame, seconds
    measures: dict[str, float]  # what the gates measured
    phash: str  # 16 hex digits, for near-duplicates by Hamming distance


@dataclass(kw_only=True)
class Rejection:
    """One stretch of the source, or (number None) the entire row, that did not become a clip.

    Reasons of rows: too_long, outside_source, and too_short, too_small, too_large, aspect, fps_too_low when they hold
    for all of it. Of stretches: those and hdr, rotation, interlaced, damaged, truncated, black, letterbox, cut_inside,
    frozen, motion, encode_loss. Caption reasons come from `filters.caption_problem`.
    """

    number: int | None
    start: float
    end: float
    reason: str
    measured: Measured = field(default_factory=dict)


@dataclass(kw_only=True)
class CutResult:
    """Everything one row gave: clips and rejections, numbered together in order of time."""

    clips: list[EncodedClip]
    rejected: list[Rejection]
    source: dict[str, Any]  # width, height, duration, fps, codec, pixel_format, sar, container, rotation
