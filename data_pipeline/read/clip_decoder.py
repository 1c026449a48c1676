"""From the bytes of a stored clip to exactly the frames that are asked for, and of these frames one square of pixels.

Frame k of a clip is the one shown at k / fps seconds. Decoding begins at the keyframe before the first frame asked for
and ends with the last one; only the square is converted to RGB. Layouts: T frames, S side of the result.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from data_pipeline.dataset.tar import ClipError
from data_pipeline.ffmpeg import raise_if_out_of_memory
from data_pipeline.read.mp4_packets import PacketTable, read_packet_table

Uint8Array = npt.NDArray[np.uint8]

# A damaged slice must be an error. Without these options the decoder would conceal it by a patch of other pixels.
_DECODER_OPTIONS = {"err_detect": "crccheck+bitstream+buffer+explode", "threads": "1"}


@dataclass(frozen=True)
class View:
    """Which part of a clip becomes a training example.

    Attributes:
        start: first frame.
        stride: every stride-th frame from there.
        top, left: corner of the square in stored pixels; even, because stored chroma has half the resolution.
        side: side of that square in stored pixels; even.
        flip: whether left and right are mirrored.
    """

    start: int
    stride: int
    top: int
    left: int
    side: int
    flip: bool


def decode_window(source: bytes | Path, start: int, count: int, stride: int = 1, *, fps: Fraction) -> Uint8Array:
    """Whole frames `start, start + stride, ...` of a stored clip.

    Args:
        fps: frames a second of the clip, as dataset.json has it.
    Returns:
        RGB frames [T, H, W, 3], T = count.
    Raises:
        ClipError: the clip is damaged or ends before the last of these frames.
    """
    data = source.read_bytes() if isinstance(source, Path) else source
    frames = [f.to_ndarray(format="rgb24", threads=1) for f in _decode(data, start, count, stride, fps)]
    return np.stack(frames)


class DecodesViews(Protocol):
    """What makes pixels of a stored clip: `ViewDecoder`, or one in a process of its own."""

    def decode(self, data: bytes, view: View, out: Uint8Array) -> None:
        """As `ViewDecoder.decode`."""
        ...


class ViewDecoder:
    """Decodes views into arrays of the caller. It keeps its colour converter between clips, so a thread needs its own.

    Args:
        fps: frames a second of the clips, as dataset.json has it.
    """

    def __init__(self, fps: Fraction) -> None:
        self.fps = fps
        self._converter = VideoReformatter()

    def decode(self, data: bytes, view: View, out: Uint8Array) -> None:
        """Fill `out` [3, T, S, S] with T frames of a view, scaled from side x side to S x S.

        Raises:
            ClipError: the clip is damaged, too short, or smaller than the view.
        """
        for t, frame in enumerate(_decode(data, view.start, out.shape[1], view.stride, self.fps)):
            square = _square(frame, view)
            self._convert(square, out[:, t], view.flip)

    def _convert(self, square: VideoFrame, out: Uint8Array, flip: bool) -> None:
        """Scale a square and write it as RGB planes to `out` [3, S, S]."""
        size = out.shape[-1]
        # FFmpeg 8 leaves the last columns of a planar RGB picture unwritten when the width is no multiple of 16.
        packed = size % 16 != 0
        form = "rgb24" if packed else "gbrp"
        rgb = self._converter.reformat(square, size, size, form, interpolation=Interpolation.BICUBIC, threads=1)
        if packed:
            pixels = rgb.to_ndarray()
            np.copyto(out, (pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1))
            return
        for channel, plane in zip((1, 2, 0), rgb.planes, strict=True):  # planes are green, blue, red
            rows = _rows(plane, 0, 0, size, size)
            out[channel] = rows[:, ::-1] if flip else rows


def _decode(data: bytes, start: int, count: int, stride: int, fps: Fraction) -> Iterator[VideoFrame]:
    """Exactly `count` frames. Raises: ClipError."""
    numbers = iter(range(start, start + count * stride, stride))
    upcoming = next(numbers)
    table = read_packet_table(data)
    source = _from_table(data, table, start, fps) if table is not None else _from_container(data, start, fps)
    try:
        with closing(source):
            for number, frame in source:
                if number < upcoming:
                    continue
                if number > upcoming:
                    raise ClipError(f"frame {upcoming} is missing; the next one is frame {number}")
                if frame.is_corrupt:
                    raise ClipError(f"frame {number} is damaged")
                yield frame
                following = next(numbers, None)
                if following is None:
                    return
                upcoming = following
    except av.FFmpegError as error:
        raise_if_out_of_memory(error)
        raise ClipError(f"cannot be decoded: {error}") from error
    raise ClipError(f"ends before frame {upcoming}")


def _from_table(data: bytes, table: PacketTable, start: int, fps: Fraction) -> Generator[tuple[int, VideoFrame]]:
    """The frames of a plain H.264 mp4 with their numbers, from the keyframe before `start` on."""
    numbers = np.rint(table.shown * float(table.tick * fps)).astype(np.int64)
    before = table.keys[numbers[table.keys] <= start]
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.extradata, decoder.options, decoder.thread_count = table.decoder_header, _DECODER_OPTIONS, 1
    if table.colour is not None:  # the decoder prefers what the stream itself states, as with libavformat
        decoder.color_primaries, decoder.color_trc, decoder.colorspace = table.colour[:3]
        decoder.color_range = 2 if table.colour[3] else 1
    view = memoryview(data)
    for number in range(int(before[-1]) if len(before) else 0, len(table.sizes)):
        at, size = int(table.offsets[number]), int(table.sizes[number])
        packet = av.Packet(size)  # has memory of its own, followed by zeros that the decoder may read
        packet.update(view[at : at + size])
        packet.pts = int(numbers[number])
        for frame in decoder.decode(packet):
            yield _number(frame, Fraction(1)), frame
    for frame in decoder.decode(None):
        yield _number(frame, Fraction(1)), frame


def _from_container(data: bytes, start: int, fps: Fraction) -> Generator[tuple[int, VideoFrame]]:
    """The same for every other mp4, through libavformat."""
    with av.open(io.BytesIO(data), format="mp4") as container:
        if not container.streams.video:
            raise ClipError("holds no video stream")
        stream = container.streams.video[0]
        stream.codec_context.options = _DECODER_OPTIONS
        assert stream.time_base is not None
        tick = stream.time_base * fps
        if start:
            container.seek(int(start / tick), stream=stream, backward=True)
        for frame in container.decode(stream):
            yield _number(frame, tick), frame


def _number(frame: VideoFrame, tick: Fraction) -> int:
    if frame.pts is None:
        raise ClipError("has a frame without a time")
    return round(frame.pts * tick)


def _square(frame: VideoFrame, view: View) -> VideoFrame:
    """The square of a view, as a frame that shares the memory of the decoded frame."""
    if view.top + view.side > frame.height or view.left + view.side > frame.width:
        raise ClipError(
            f"is {frame.width}x{frame.height}, too small for a square of {view.side} at ({view.left}, {view.top})"
        )
    parts = []
    for plane in frame.planes:
        down, across = frame.height // plane.height, frame.width // plane.width
        parts.append(_rows(plane, view.top // down, view.left // across, view.side // down, view.side // across))
    try:
        square = VideoFrame.from_dlpack(tuple(parts), format=frame.format.name)
    except (NotImplementedError, ValueError) as error:
        raise ClipError(f"has the pixel format {frame.format.name}, which is not planar 8-bit") from error
    square.colorspace, square.color_range = frame.colorspace, frame.color_range
    return square


def _rows(plane: VideoPlane, top: int, left: int, height: int, width: int) -> Uint8Array:
    """A rectangle of a plane, without copying it."""
    pitch = plane.line_size
    return np.ndarray((height, width), np.uint8, plane, top * pitch + left, (pitch, 1))  # type: ignore[arg-type]
