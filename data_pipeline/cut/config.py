"""Settings of the clip cutter: how clips are cut, judged and stored. Keys are `clip.<field>`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Crop(Enum):
    """What the cutter does with a picture that is not square."""

    square = "square"
    none = "none"


class Interlaced(Enum):
    """What the cutter does with interlaced pictures."""

    field = "field"
    reject = "reject"


class Letterbox(Enum):
    """What the cutter does with black bars."""

    reject = "reject"
    crop = "crop"
    keep = "keep"


class Codec(Enum):
    """How stored frames are compressed inside the mp4."""

    h264 = "h264"
    mjpeg = "mjpeg"


@dataclass(kw_only=True)
class ClipConfig:
    """How clips are cut, judged and stored."""

    fps: int = 8  # frames a second of every stored clip; a source that is slower is rejected (fps_too_low) [>= 1]
    short_side: int = 256  # pixels of the stored short side; training crops 224 from it [>= 2]
    # square keeps the centre square, all that a square training crop can use: 0.56 of the bytes and of the decode time
    # of 16:9; none keeps the aspect ratio
    crop: Crop = Crop.square
    min_seconds: float = 2.0  # shorter shots are rejected (too_short); 2 s are the 16 frames of a training window [> 0]
    max_seconds: float = 10.0  # longer shots are split, so that no rest is shorter than min_seconds [> 0]

    min_short_side: int = 224  # source pixels as displayed; smaller sources are rejected (too_small) [>= 1]
    max_pixels: int = 35_400_000  # source pixels a frame, a little over 8K; larger are rejected (too_large) [>= 1]
    max_aspect: float = 3.0  # long over short side as displayed; beyond it rejected (aspect) [>= 1]
    # longer sources or windows are rejected (too_long); bounds time and memory [> 0]
    max_source_seconds: float = 14_400.0
    # field shows the first field of each interlaced frame (no combing, half the lines); reject refuses (interlaced)
    interlaced: Interlaced = Interlaced.field
    # share of a row's frames that decode errors may cost; the clean rest is kept, beyond it the row is quarantined
    # [0 ... 1]
    max_damage: float = 0.25

    cut_ratio: float = 3.0  # a cut changes the picture this many times more than the 4 frames around it [>= 0]
    # and by at least this much (mean HSV difference, 0 to 255; PySceneDetect's content_val) [>= 0]
    cut_change: float = 15.0
    max_change: float = 60.0  # a clip with a larger change between two frames is rejected (cut_inside) [>= 0]
    # reject refuses clips with black bars (letterbox), crop cuts the bars away, keep ignores them
    letterbox: Letterbox = Letterbox.reject
    max_letterbox: float = 0.05  # share of the stored picture that black bars may cover [0 ... 1]
    max_black: float = 0.1  # share of frames that may be black; beyond it rejected (black) [0 ... 1]
    # share of frames that may repeat the picture before them; beyond it rejected (frozen) [0 ... 1]
    max_frozen: float = 0.5
    min_motion: float = 0.05  # mean luma change between frames, levels of 255; below it rejected (motion) [>= 0]
    max_motion: float = 60.0  # above it rejected (motion) [>= 0]
    min_psnr: float = 34.0  # dB of luma, stored clip against the resized source; below it rejected (encode_loss) [>= 0]

    codec: Codec = Codec.h264  # h264 or mjpeg; docs/performance.md has bytes and decode cost of each
    crf: int = 18  # h264 quality, 0 (lossless) to 51 [0 ... 51]
    preset: str = "veryfast"  # x264 preset: slower ones save few bytes at 256 pixels
    gop: int = 16  # h264 frames from one keyframe to the next; a reader decodes at most this many too many [>= 1]
    bframes: int = 0  # h264 B-frames; 0 stores frames in the order shown, 3 saves a tenth of the bytes [0 ... 16]
    jpeg_quality: int = 3  # mjpeg quantizer, 1 (best) to 31 [1 ... 31]

    def __post_init__(self) -> None:
        for name in ("fps", "short_side", "min_short_side", "max_pixels", "gop"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip.{name}={getattr(self, name)} must be at least 1")
        if self.short_side % 2:
            raise ValueError(f"clip.short_side={self.short_side} must be even: colour is stored at half size")
        if self.min_frames < 1:
            raise ValueError(f"clip.min_seconds={self.min_seconds} is less than one frame; raise it to {1 / self.fps}")
        if self.max_frames < 2 * self.min_frames:
            raise ValueError(
                f"clip.max_seconds={self.max_seconds} must be at least twice clip.min_seconds={self.min_seconds}, "
                "so that a long shot can be split without a rest that is too short"
            )
        for name in ("cut_ratio", "cut_change", "max_change", "min_motion", "max_motion", "min_psnr"):
            if getattr(self, name) < 0:
                raise ValueError(f"clip.{name}={getattr(self, name)} must not be negative")
        if self.max_source_seconds <= 0:
            raise ValueError(f"clip.max_source_seconds={self.max_source_seconds} must be positive (seconds)")
        for name in ("max_damage", "max_letterbox", "max_black", "max_frozen"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"clip.{name}={getattr(self, name)} is a share: it must lie between 0 and 1")
        for name, low, high in (("crf", 0, 51), ("bframes", 0, 16), ("jpeg_quality", 1, 31)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"clip.{name}={getattr(self, name)} must lie between {low} and {high}")
        if self.preset not in PRESETS:
            raise ValueError(f"clip.preset={self.preset!r} is not an x264 preset; use one of {', '.join(PRESETS)}")
        if self.max_aspect < 1.0:
            raise ValueError(f"clip.max_aspect={self.max_aspect} is long over short side: it must be at least 1")
        if self.min_motion > self.max_motion:
            raise ValueError(f"clip.min_motion={self.min_motion} exceeds clip.max_motion={self.max_motion}")

    @property
    def min_frames(self) -> int:
        """Fewest frames of a clip."""
        return round(self.min_seconds * self.fps)

    @property
    def max_frames(self) -> int:
        """Most frames of a clip."""
        return round(self.max_seconds * self.fps)


PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
