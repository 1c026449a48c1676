"""Gates: each refuses clips by one measured value, and gives a reason whose name never changes."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.config import ClipConfig, Letterbox
from data_pipeline.cut.letterbox import bar_share

BLACK = 20  # grey level of 255 up to which a pixel is black
SAME = 0.1  # mean luma change up to which a frame counts as a repeat of the last one: less than any camera's noise


def measure_pictures(thumbnails: NDArray[np.uint8], changes: list[float]) -> dict[str, float]:
    """The values that the gates for pictures judge.

    Args:
        thumbnails: grey levels of the stored pictures, area-averaged, [frames, side, side].
        changes: PySceneDetect's content_val between successive frames of the clip, [frames - 1].
    Returns:
        black: share of frames with nothing brighter than black in 98 % of their area.
        frozen: share of frames that repeat the frame before them.
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


def picture_problem(measures: dict[str, float], config: ClipConfig) -> str | None:
    """The reason of the first gate that refuses these values; None when all gates accept them."""
    gates = (
        ("black", measures["black"] > config.max_black),
        ("letterbox", config.letterbox is not Letterbox.keep and measures["letterbox"] > config.max_letterbox),
        ("cut_inside", measures["change"] > config.max_change),
        ("frozen", measures["frozen"] > config.max_frozen),
        ("motion", not config.min_motion <= measures["motion"] <= config.max_motion),
    )
    return next((reason for reason, refused in gates if refused), None)


def perceptual_hash(thumbnails: NDArray[np.uint8]) -> str:
    """64 bits as 16 hex digits: which of the 8 x 8 lowest frequencies of the clip's mean picture exceed their median.

    Encoding a clip again, resizing it or shifting it a little changes few bits, so two hashes are compared by their
    Hamming distance.

    Args:
        thumbnails: grey [frames, side, side].
    """
    mean = cv2.resize(thumbnails.mean(axis=0, dtype=np.float64), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(mean)[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return f"{int(np.packbits(bits).tobytes().hex(), 16):016x}"
