"""From a coded picture to the one that a player shows: stored in a clip by `Resizer`, measured by `RgbPictures`.

The filters apply the display matrix (rotation, mirroring) and the sample aspect ratio, as a player does. The stored
picture is a field, without bars, a centre square, in 8 bits and limited range: the filters crop first, so that only
pixels that stay are scaled, and turn last, on the small picture. Its colours keep their matrix and its tag. A picture
without a tag is in BT.709 where it is of high definition, else in BT.601; where it is BT.709, the stored one says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np

from data_pipeline.cut.config import ClipConfig, Crop, Interlaced
from data_pipeline.cut.letterbox import Bars

PQ, HLG = 16, 18  # transfer characteristics of HDR video, ITU-T H.273 table 3
UNSPECIFIED = 2  # in the same table
RGB_MATRIX, BT709_MATRIX = 0, 1  # ITU-T H.273 table 4
HD_LONG, HD_SHORT = 1280, 576  # high definition has a side of this many pixels, or its short side has more than that

# Signs of the display matrix (a, b, c, d), x' = a x + c y and y' = b x + d y, to the filters that apply it.
ORIENTATIONS: dict[tuple[int, int, int, int], tuple[tuple[str, str], ...]] = {
    (1, 0, 0, 1): (),
    (0, 1, -1, 0): (("transpose", "clock"),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (0, -1, 1, 0): (("transpose", "cclock"),),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
    (0, 1, 1, 0): (("transpose", "cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "clock_flip"),),
}
UPRIGHT = (1, 0, 0, 1)
Orientation = tuple[int, int, int, int]
Step = tuple[str, str]
"""A filter and its arguments."""


@dataclass(frozen=True)
class ClipRefused:
    """The reason why a picture cannot be stored in a clip, and the values measured."""

    reason: str
    measured: tuple[tuple[str, float | str], ...]


def orientation_of(frame: av.VideoFrame) -> Orientation | None:
    """Signs of the frame's display matrix; UPRIGHT without one, None unless the angle is a multiple of 90 degrees."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(bytes(data), "<i4").astype(float)
    linear = matrix[[0, 1, 3, 4]]
    largest = np.abs(linear).max()
    if largest == 0:
        return UPRIGHT
    a, b, c, d = (int(value) for value in np.round(linear / largest))
    exact = np.abs(linear / largest - [a, b, c, d]).max() < 0.02
    return (a, b, c, d) if exact and (a, b, c, d) in ORIENTATIONS else None


def matrix_of(frame: av.VideoFrame) -> int:
    """The colour matrix of a frame, ITU-T H.273 table 4; BT.709 for high definition that does not say its matrix.

    A decoder takes the matrix UNSPECIFIED for BT.601, as all players do with small pictures.
    """
    long, short = max(frame.width, frame.height), min(frame.width, frame.height)
    if frame.colorspace != UNSPECIFIED or frame.format.is_rgb or (long < HD_LONG and short <= HD_SHORT):
        return int(frame.colorspace)
    return BT709_MATRIX


def displayed_size(width: int, height: int, sar: Fraction, orientation: Orientation) -> tuple[int, int]:
    """Width and height in square pixels as a player shows them."""
    shown = (round(width * sar), height) if sar >= 1 else (width, round(height / sar))
    return shown if orientation[0] else (shown[1], shown[0])


def size_problem(width: int, height: int, coded_pixels: int, config: ClipConfig) -> ClipRefused | None:
    """Whether a picture of this displayed size is too_large, too_small or has a refused aspect; None if accepted."""
    size = (("width", float(width)), ("height", float(height)))
    if coded_pixels > config.max_pixels:
        return ClipRefused("too_large", (*size, ("pixels", float(coded_pixels))))
    if min(width, height) < config.min_short_side:
        return ClipRefused("too_small", size)
    aspect = max(width, height) / min(width, height)
    return ClipRefused("aspect", (*size, ("aspect", aspect))) if aspect > config.max_aspect else None


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))


def _crop_and_scale(
    width: int, height: int, sar: Fraction, crop: Crop, short_side: int
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The centred crop (width, height, x, y) in coded pixels, and the size after scaling and before turning."""
    wide, high = float(width * sar), float(height)
    if crop is Crop.square:
        side = min(wide, high)
        keep = (min(width, _even(side / float(sar))), min(height, _even(side)))
        scaled = (short_side, short_side)
    else:
        keep = (width, height)
        short = min(wide, high)
        scaled = (_even(wide / short * short_side), _even(high / short * short_side))
    return (*keep, (width - keep[0]) // 4 * 2, (height - keep[1]) // 4 * 2), scaled


class ShownPictures(ABC):
    """Turns decoded frames of one source into pictures as a player shows them.

    Args:
        sar: sample aspect ratio of the stream.
        top_first: whether the upper field of an interlaced frame is shown first.
        transfer: transfer characteristics that the container gives, for frames that do not say theirs.
    """

    def __init__(self, sar: Fraction, *, top_first: bool = True, transfer: int = UNSPECIFIED) -> None:
        self.sar, self.top_first, self.transfer = sar, top_first, transfer
        self.properties: dict[str, Any] = {}  # of the frames: rotation in degrees counter-clockwise, interlaced
        self._paths: dict[tuple[Any, ...], _Path | ClipRefused] = {}

    @abstractmethod
    def steps(self, frame: av.VideoFrame, orientation: Orientation) -> list[Step] | ClipRefused:
        """The filters of a frame of this kind after that of its field, or the reason why it has no picture."""

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame | ClipRefused:
        """The picture of one frame, or the reason why there is none."""
        frame.colorspace = matrix_of(frame)
        orientation = orientation_of(frame)
        key = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.interlaced_frame,
            orientation,
            frame.color_range,
            frame.colorspace,
            frame.color_trc,
        )
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = self._build(frame, orientation)
            self.properties = {
                "rotation": int(frame.rotation),
                "interlaced": bool(frame.interlaced_frame) or self.properties.get("interlaced", False),
            }
        if isinstance(path, ClipRefused):
            return path
        path.source.push(frame)
        return path.sink.pull()

    def _build(self, frame: av.VideoFrame, orientation: Orientation | None) -> _Path | ClipRefused:
        if orientation is None:
            return ClipRefused("rotation", (("degrees", float(frame.rotation)),))
        transfer = self.transfer if frame.color_trc == UNSPECIFIED else frame.color_trc
        if transfer in (PQ, HLG):
            return ClipRefused("hdr", (("transfer", "PQ" if transfer == PQ else "HLG"),))
        steps = self.steps(frame, orientation)
        if isinstance(steps, ClipRefused):
            return steps
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1:pixel_aspect=1/1:"
            f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        field = [("field", "top" if self.top_first else "bottom")] if frame.interlaced_frame else []
        return _Path([("buffer", source), *field, *steps, *ORIENTATIONS[orientation], ("buffersink", "")])


class RgbPictures(ShownPictures):
    """RGB pictures (rgb24) of whole frames in square pixels; of an interlaced frame the first field, at full height."""

    def steps(self, frame: av.VideoFrame, orientation: Orientation) -> list[Step] | ClipRefused:
        """The filters: to square pixels, and to RGB."""
        width, height = displayed_size(frame.width, frame.height, self.sar, UPRIGHT)
        return [("scale", f"{width}:{height}:flags=bicubic"), ("format", "rgb24")]


class Resizer(ShownPictures):
    """Turns decoded frames into stored pictures (yuv420p, limited range) of one source.

    Args:
        config: the clip settings.
        sar, top_first, transfer: of the source, as `ShownPictures` takes them.
    """

    def __init__(
        self, config: ClipConfig, sar: Fraction, *, top_first: bool = True, transfer: int = UNSPECIFIED
    ) -> None:
        super().__init__(sar, top_first=top_first, transfer=transfer)
        self.config = config
        self.bars = Bars()  # black borders that are cut away first

    def steps(self, frame: av.VideoFrame, orientation: Orientation) -> list[Step] | ClipRefused:
        """The filters: bars away, centre square, stored size, 8 bits."""
        config, bars = self.config, self.bars
        if frame.interlaced_frame and config.interlaced is Interlaced.reject:
            return ClipRefused("interlaced", ())
        fields = 2 if frame.interlaced_frame else 1
        width = frame.width - bars.left - bars.right
        height = (frame.height - bars.top - bars.bottom) // fields
        refused = size_problem(
            *displayed_size(width, height, self.sar / fields, orientation), frame.width * frame.height, config
        )
        if refused:
            return refused
        crop, scaled = _crop_and_scale(width, height, self.sar / fields, config.crop, config.short_side)
        rgb = int(frame.colorspace) == RGB_MATRIX or frame.format.is_rgb
        matrix = ":out_color_matrix=bt709" if rgb else ""
        return [
            ("crop", f"{crop[0]}:{crop[1]}:{crop[2] + bars.left}:{crop[3] + bars.top // fields}:exact=1"),
            ("scale", f"{scaled[0]}:{scaled[1]}:flags=bicubic:out_range=limited{matrix}"),
            ("format", "yuv420p"),
        ]


class _Path:
    """One linear filter graph. The nodes do not keep the graph alive, so this object holds it."""

    def __init__(self, steps: list[tuple[str, str]]) -> None:
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        nodes = [self._graph.add(name, arguments or None) for name, arguments in steps]
        self._graph.link_nodes(*nodes)
        self._graph.configure(auto_buffer=False)
        self.source, self.sink = nodes[0], nodes[-1]
