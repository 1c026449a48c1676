"""Small JPEG pictures of stored clips, and of the stretches of local sources that gave no clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from data_pipeline.cut.config import ClipConfig, Crop, Letterbox
from data_pipeline.cut.isolate import IsolatedCutter
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.dataset.tar import ClipError
from data_pipeline.read.clip_decoder import Uint8Array, decode_window
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import SourceProblem, Sources

HEIGHT = 112  # pixels of a picture
_QUALITY = 82
_SECONDS = 1.0  # so much of a source is decoded for one picture
_TIMEOUT_S = 30.0
_MEMORY_BYTES = 2_000_000_000

# No gate refuses anything, because the picture shall show what the build refused.
_EVERYTHING = ClipConfig(
    short_side=HEIGHT,
    crop=Crop.none,
    min_seconds=0.125,
    max_seconds=_SECONDS,
    min_short_side=2,
    max_aspect=12.0,
    max_damage=1.0,
    max_change=1e6,
    letterbox=Letterbox.keep,
    max_letterbox=1.0,
    max_black=1.0,
    max_frozen=1.0,
    min_motion=0.0,
    max_motion=255.0,
    min_psnr=0.0,
)


class NoPicture(Exception):
    """There is no picture. The message tells the reader of the page why."""


def clip_strip(data: bytes, frames: int, fps: Fraction) -> bytes:
    """First, middle and last frame of a stored clip side by side, as one JPEG.

    Raises: NoPicture if the clip cannot be decoded.
    """
    try:
        shown = min(frames, 3)
        pictures = decode_window(data, 0, shown, max(1, (frames - 1) // max(1, shown - 1)), fps=fps)
    except ClipError as error:
        raise NoPicture(f"the stored clip {error}") from error
    return jpeg(list(pictures))


def jpeg(pictures: list[Uint8Array]) -> bytes:
    """RGB pictures [H, W, 3] of one size, side by side with a white gap, HEIGHT pixels high."""
    height, width = pictures[0].shape[:2]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    gap = np.full((HEIGHT, 2, 3), 255, np.uint8)
    parts: list[Uint8Array] = []
    for picture in pictures:
        parts += [gap, cv2.resize(picture, size, interpolation=cv2.INTER_AREA)]
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(np.hstack(parts[1:]), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert done
    return data.tobytes()


class SourceStills:
    """Makes pictures of local sources, in a child process with limits, because a refused file may be harmful.

    Args:
        base: the folder of relative video paths; no file outside it is opened.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._sources = Sources(str(base), SourcesConfig(untrusted=True))
        self._cutter = IsolatedCutter(_EVERYTHING, timeout_s=_TIMEOUT_S, memory_bytes=_MEMORY_BYTES)

    def still(self, video: str, start: float | None, end: float | None) -> bytes:
        """A JPEG of the beginning of a stretch [start, end) in seconds.

        Raises: NoPicture.
        """
        if "://" in video:
            raise NoPicture("no picture: the source is remote, and a report fetches nothing")
        try:
            path = self._sources.fetch(video, self._base)
            begin = start or 0.0
            until = begin + _SECONDS if end is None else min(end, begin + _SECONDS)
            result = self._cutter.cut(path, start=start, end=max(until, begin + 0.125))
        except SourceProblem as problem:
            raise NoPicture(f"no picture: {problem.detail}") from problem
        except UndecodableVideo as error:
            raise NoPicture("no picture: the source cannot be decoded there") from error
        if not result.clips:
            reasons = ", ".join(sorted({item.reason for item in result.rejected})) or "nothing decodable"
            raise NoPicture(f"no picture: the source gives none there ({reasons})")
        clip = result.clips[0]
        return jpeg([decode_window(clip.data, 0, 1, fps=Fraction(_EVERYTHING.fps))[0]])

    def __enter__(self) -> SourceStills:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cutter.close()
