"""Clips as moving pictures and video files. Frames are uint8 [T, H, W, 3]."""

from __future__ import annotations

import io
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.store.files import disk_errors

Frames = NDArray[np.uint8]
H264_OPTIONS = {"crf": "16", "x264-params": "cpu-independent=1"}
"""Of libx264. Without the second one, what lies in memory by chance makes the same frames one of several files."""


def side_by_side(clips: list[Frames], gap: int = 4) -> Frames:
    """Equal clips next to each other with a white gap: [T, H, n*W + (n-1)*gap, 3]."""
    shapes = {clip.shape for clip in clips}
    if len(shapes) != 1:
        raise ValueError(f"clips side by side must have one shape, got {sorted(shapes)}")
    frames, height, _, _ = clips[0].shape
    space = np.full((frames, height, gap, 3), 255, dtype=np.uint8)
    parts: list[Frames] = []
    for index, clip in enumerate(clips):
        parts += [space, clip] if index else [clip]
    return np.concatenate(parts, axis=2)


def animated_png(frames: Frames, fps: float, scale: int = 1) -> bytes:
    """A looping, lossless APNG, each pixel drawn `scale` times as large. Every browser plays it as an image."""
    if scale > 1:
        frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="PNG", save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0, optimize=False
    )
    return buffer.getvalue()


class VideoWriter:
    """Writes H.264 frame by frame at a constant rate. The file gets its name only when it is complete.

    The same frames give the same bytes.

    Whatever ends the writing early, nothing of the new file stays. A full disk is a StoreError with the remedy.
    """

    def __init__(self, path: str | Path, fps: Fraction) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")
        self._fps = fps
        self._stream: av.VideoStream | None = None
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # FFmpeg takes the word in front of a colon for a protocol, unless the name begins with a slash.
            self._container = av.open(str(self._partial.absolute()), "w")

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: Frames) -> None:
        """Append one frame [H, W, 3]. An odd side gets one repeated row or column, because 4:2:0 needs even sides.

        Raises:
            StoreError: the disk is full.
        """
        height, width, _ = frame.shape
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._fps, options=H264_OPTIONS)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.thread_count = 1
            # The conversion below uses BT.601, and players obey the stream's tag.
            self._stream.codec_context.colorspace = Colorspace.ITU601
        with disk_errors(self.path):
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._complete()
            else:
                with suppress(av.FFmpegError):  # because the error that ended the writing is the one to be told
                    self._container.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def _complete(self) -> None:
        with disk_errors(self.path):
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if self._stream is not None:
                self._partial.replace(self.path)
