"""One source video to exact, encoded clips: probe -> decode -> resample -> shots -> gates -> encode.

`cut_clips` is a pure function of the file's bytes, the window and the configuration: same input, same bytes out. Every
stretch of the source ends either in an `EncodedClip` or in a `Rejection` that names its reason and what was measured.
Times are seconds on the file's own presentation timeline, as `ffprobe -show_entries frame=pts_time` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class UndecodableVideo(ValueError):
    """The file cannot be turned into clips at all; its row is quarantined. The message says what failed and where."""


class Crop(str, Enum):
    """What becomes of a picture that is not square."""

    SQUARE = "square"
    NONE = "none"


@dataclass(kw_only=True)
class ClipConfig:
    """How clips are cut, judged and stored."""

    fps: int = 8  # frames a second of every stored clip
    short_side: int = 256  # pixels of the stored short side; training crops 224 from it
    crop: Crop = Crop.SQUARE  # square: keep the centre square (half the bytes of 16:9); none: keep the aspect ratio
    min_seconds: float = 2.0  # shorter shots are rejected (too_short); 2 s are the 16 frames a window needs
    max_seconds: float = 10.0  # longer shots are split evenly

    def __post_init__(self) -> None:
        if self.fps < 1:
            raise ValueError(f"clip.fps={self.fps} must be at least 1")


@dataclass(kw_only=True)
class EncodedClip:
    """One accepted clip. `start` is when its first frame is sampled, frame k shows the source at start + k / fps."""

    number: int  # position among all candidates of the row, accepted or not
    data: bytes  # the mp4
    start: float
    end: float
    frames: int
    height: int
    width: int
    fps_error: float  # largest |source_pts[k] - (start + k / fps)|, seconds
    source_pts: list[float]  # presentation time of the source frame behind each stored frame, seconds
    measures: dict[str, float]  # what the gates measured, by gate
    phash: str  # 16 hex digits, for near-duplicates by Hamming distance


@dataclass(kw_only=True)
class Rejection:
    """One stretch of the source, or (number None) the entire row, that did not become a clip."""

    number: int | None
    start: float
    end: float
    reason: str  # a stable slug: too_short, too_small, fps_too_low, frozen, ...
    measured: dict[str, float | str] = field(default_factory=dict)


@dataclass(kw_only=True)
class CutResult:
    """Everything one row gave: clips and rejections, numbered together in order of time."""

    clips: list[EncodedClip]
    rejected: list[Rejection]
    source: dict[str, Any]  # width, height, duration, fps, codec, pixel_format, rotation, sar, ...


def cut_clips(
    path: str | Path, *, start: float | None = None, end: float | None = None, config: ClipConfig
) -> CutResult:
    """Cut one local video file, or its window [start, end) in seconds, into clips.

    Raises:
        UndecodableVideo: nothing trustworthy can be decoded; the row belongs in quarantine.
    """
    raise NotImplementedError


ENCODER_VERSION = "unset"
