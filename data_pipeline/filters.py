"""Gates: what keeps a clip or a row out, each with a stable reason and the value it measured."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.clip_config import ClipConfig, Letterbox
from data_pipeline.geometry import Bars

BLACK = 20  # grey level of 255 up to which a pixel is black
BAR = 12  # grey level of the brightest pixel of a bar; bars are flat, so less than for pictures
SAME = 0.1  # mean luma change up to which a frame repeats the one before: less than any camera's noise


@dataclass(kw_only=True)
class CaptionConfig:
    """Which captions are accepted."""

    required: bool = True  # a row without a caption is rejected (caption_missing)
    min_characters: int = 1  # shorter captions are rejected (caption_too_short)
    max_characters: int = 2000  # longer captions are rejected (caption_too_long)
    min_letters: float = 0.3  # share of characters that are letters of any script; fewer are rejected (caption_no_text)

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise ValueError(
                f"caption.min_characters={self.min_characters} and caption.max_characters={self.max_characters} "
                "must satisfy 0 <= min_characters <= max_characters"
            )
        if not 0.0 <= self.min_letters <= 1.0:
            raise ValueError(f"caption.min_letters={self.min_letters} is a share: it must lie between 0 and 1")


def caption_problem(caption: str | None, config: CaptionConfig) -> tuple[str, dict[str, float | str]] | None:
    """The reason a caption is refused and what was measured, or None when it is fine."""
    text = (caption or "").strip()
    if not text:
        return ("caption_missing", {"characters": 0}) if config.required else None
    if len(text) < config.min_characters:
        return "caption_too_short", {"characters": len(text)}
    if len(text) > config.max_characters:
        return "caption_too_long", {"characters": len(text)}
    kinds = [unicodedata.category(character) for character in text]
    # Control characters and U+FFFD are left behind by text that was decoded with the wrong encoding.
    broken = sum(
        character == "\ufffd" or (kind in ("Cc", "Cs", "Co") and character not in "\n\r\t")
        for character, kind in zip(text, kinds, strict=True)
    )
    if broken:
        return "caption_encoding", {"broken_characters": broken}
    letters = sum(kind[0] in "LM" for kind in kinds) / len(kinds)
    return ("caption_no_text", {"letters": letters}) if letters < config.min_letters else None


def measure_pictures(thumbnails: NDArray[np.uint8], changes: list[float]) -> dict[str, float]:
    """What the picture gates look at.

    Args:
        thumbnails: grey levels of the stored pictures, area-averaged, [frames, side, side].
        changes: PySceneDetect's content_val between successive frames of the clip, [frames - 1].
    Returns:
        black: share of frames with nothing brighter than black in 98 % of their area.
        frozen: share of frames that repeat the one before.
        letterbox: share of the picture under black bars that last the whole clip.
        motion: mean absolute grey change between successive frames, levels of 255.
        change: largest content_val inside the clip.
    """
    bright = np.percentile(thumbnails.reshape(len(thumbnails), -1), 98, axis=1)
    steps = [cv2.norm(a, b, cv2.NORM_L1) / a.size for a, b in pairwise(thumbnails)]
    return {
        "black": float(np.mean(bright <= BLACK)),
        "frozen": sum(step <= SAME for step in steps) / max(1, len(steps)),
        "letterbox": bar_share(thumbnails.max(axis=0)),
        "motion": sum(steps) / max(1, len(steps)),
        "change": max(changes, default=0.0),
    }


def bar_share(brightest: NDArray[np.uint8]) -> float:
    """Share of a picture [H, W], the brightest of each pixel over time, under black bars at its edges."""
    bars = bar_sizes(brightest)
    height, width = brightest.shape
    return 1.0 - (height - bars.top - bars.bottom) * (width - bars.left - bars.right) / (height * width)


def bar_sizes(brightest: NDArray[np.uint8]) -> Bars:
    """Rows at the top and bottom, columns at the left and right, that stay black; none for a wholly black picture."""
    rows = np.flatnonzero(brightest.max(axis=1) > BAR)
    columns = np.flatnonzero(brightest.max(axis=0) > BAR)
    if not len(rows):
        return Bars()
    height, width = brightest.shape
    return Bars(int(rows[0]), int(height - 1 - rows[-1]), int(columns[0]), int(width - 1 - columns[-1]))


def picture_problem(measures: dict[str, float], config: ClipConfig) -> str | None:
    """The first gate that refuses what was measured, or None."""
    gates = (
        ("black", measures["black"] > config.max_black),
        ("letterbox", config.letterbox is not Letterbox.keep and measures["letterbox"] > config.max_letterbox),
        ("cut_inside", measures["change"] > config.max_change),
        ("frozen", measures["frozen"] > config.max_frozen),
        ("motion", not config.min_motion <= measures["motion"] <= config.max_motion),
    )
    return next((reason for reason, refused in gates if refused), None)


def perceptual_hash(thumbnails: NDArray[np.uint8]) -> str:
    """64 bits as 16 hex digits: signs of the 8 x 8 lowest frequencies of the clip's mean picture against their median.

    Re-encoding, resizing and small shifts of the clip change few bits; compare by Hamming distance.

    Args:
        thumbnails: grey [frames, side, side].
    """
    mean = cv2.resize(thumbnails.mean(axis=0, dtype=np.float64), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(mean)[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return f"{int(np.packbits(bits).tobytes().hex(), 16):016x}"
