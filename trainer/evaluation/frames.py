"""Reads the frames of a video file one after another, upright and with square pixels, in constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

_YUV_NAME = re.compile(r"_(\d+)x(\d+)_(\d+(?:\.\d+)?)(?:fps|Hz)?$", re.IGNORECASE)
_HD_HEIGHT = 720  # raw files have no colour tag, so files of at least this height count as BT.709, smaller as BT.601


def yuv_geometry(path: Path) -> tuple[int, int, Fraction]:
    """Width, height and rate from a raw video's name, `<anything>_<width>x<height>_<fps>.yuv`.

    Raises:
        ValueError: the name does not have this form.
    """
    match = _YUV_NAME.search(path.stem)
    if match is None:
        raise ValueError(
            f"{path.name}: a raw .yuv must be named <name>_<width>x<height>_<fps>.yuv, as MCL-JCV names them"
        )
    return int(match[1]), int(match[2]), Fraction(match[3])


class FrameReader:
    """Iterates over the frames of an open video: uint8 [H, W, 3] RGB, rotation and pixel aspect applied."""

    def __init__(self, container: Any, name: str, fps: Fraction, raw_height: int | None) -> None:
        self._container, self._name = container, name
        self._colours = Colorspace.ITU709 if raw_height is not None and raw_height >= _HD_HEIGHT else None
        self.fps = fps
        """The file's average number of frames a second."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for frame in self._container.decode(stream):
                yield self._upright(frame, stream.sample_aspect_ratio or Fraction(1))
        except av.FFmpegError as error:
            raise ValueError(f"{self._name} cannot be decoded: {error}") from error

    def _upright(self, frame: Any, pixel_aspect: Fraction) -> NDArray[np.uint8]:
        width = frame.width if pixel_aspect in (0, 1) else max(1, round(frame.width * pixel_aspect))
        shown = frame.reformat(width=width, format="rgb24", src_colorspace=self._colours)
        pixels: NDArray[np.uint8] = shown.to_ndarray()
        quarter_turns = round(frame.rotation / 90) % 4  # the display matrix counts counter-clockwise, as rot90 does
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels


@contextmanager
def open_frames(path: str | Path) -> Iterator[FrameReader]:
    """Open a video file, or a raw `.yuv` file of 8 bit 4:2:0, whose size and rate are in its name.

    Raises:
        ValueError: the file does not exist, holds no video, or cannot be decoded; the message names it.
    """
    path = Path(path)
    options: dict[str, str] = {}
    fps: Fraction | None = None
    raw_height = None
    if path.suffix.lower() == ".yuv":
        width, raw_height, fps = yuv_geometry(path)
        options = {"video_size": f"{width}x{raw_height}", "framerate": str(fps), "pixel_format": "yuv420p"}
    try:
        container = av.open(str(path), format="rawvideo" if options else None, options=options)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be opened as a video: {error}") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        fps = fps or container.streams.video[0].average_rate
        if not fps:
            raise ValueError(
                f"{path} does not say its frame rate; remux it, for instance with ffmpeg -i IN -c copy OUT"
            )
        yield FrameReader(container, path.name, fps, raw_height)
