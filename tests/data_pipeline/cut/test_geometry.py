"""Orientation, pixel shape, sizes, depth and fields, against ffmpeg's own autorotation and scaling."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.cut.config import ClipConfig, Crop, Interlaced, Letterbox
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.geometry import ORIENTATIONS, Resizer, _crop_and_scale, orientation_of, size_problem
from data_pipeline.cut.letterbox import Bars, find_bars
from data_pipeline.cut.result import EncodedClip
from data_pipeline.cut.video import VideoSource
from tests.data_pipeline.cut.videos import decoded, ffmpeg_frames, numbered_video, numbers, picture, psnr, write_video

COUNT = 18  # frames at 8 a second: every frame is sampled


def settings(**changes: Any) -> ClipConfig:
    wide: dict[str, Any] = {"max_change": 255.0, "cut_change": 255.0, "crf": 8, "min_short_side": 64}
    return ClipConfig(**{**wide, **changes})


def only_clip(path: Path, config: ClipConfig) -> EncodedClip:
    (clip,) = cut_clips(path, config=config).clips
    return clip


def frames_of(clip: EncodedClip) -> np.ndarray:
    return np.stack(decoded(clip.data))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", list(Crop))
def test_rotation_is_applied_as_ffmpeg_does(tmp_path: Path, degrees: int, crop: Crop) -> None:
    path = numbered_video(
        tmp_path / "v.mp4", COUNT, width=384, height=256, fps=8, prepare=lambda s: s.set_display_rotation(degrees)
    )
    clip = only_clip(path, settings(crop=crop))
    upright = degrees % 180 == 0
    size = (256, 256) if crop is Crop.square else ((384, 256) if upright else (256, 384))
    assert (clip.width, clip.height) == size
    expected = ffmpeg_frames(path, f"crop='min(iw,{size[0]})':'min(ih,{size[1]})'", *size)
    assert psnr(frames_of(clip), expected) > 35
    turned = ffmpeg_frames(path, f"hflip,vflip,crop='min(iw,{size[0]})':'min(ih,{size[1]})'", *size)
    assert psnr(frames_of(clip), turned) < 25


@pytest.mark.parametrize("matrix", [signs for signs in ORIENTATIONS if signs not in ((1, 0, 0, 1),)])
def test_every_orientation_moves_corners_where_the_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    image = np.full((256, 320, 3), 60, np.uint8)
    image[:64, :64] = 200  # a bright top left corner
    a, b, c, d = (value << 16 for value in matrix)
    path = write_video(
        tmp_path / "v.mp4", [image] * 2, prepare=lambda s: s.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    )
    with VideoSource(path) as source:
        frame = next(source.container.decode(source.stream))
        assert orientation_of(frame) == matrix
        turned = Resizer(settings(crop=Crop.none), source.sar)(frame)
    assert isinstance(turned, av.VideoFrame)
    grey = turned.to_ndarray(format="gray")
    # x' = a x + c y, y' = b x + d y, of the corner (-1, -1) as seen from the centre
    right, down = -matrix[0] - matrix[2] > 0, -matrix[1] - matrix[3] > 0
    bright = grey[-16:] if down else grey[:16]
    assert (bright[:, -16:] if right else bright[:, :16]).mean() > 180
    assert grey.mean() < 80
    assert grey.shape == ((256, 320) if matrix[0] else (320, 256))


@pytest.mark.parametrize("degrees", [3, 30, 95])
def test_an_oblique_matrix_is_rejected(tmp_path: Path, degrees: int) -> None:
    path = numbered_video(tmp_path / "v.mp4", COUNT, fps=8, prepare=lambda s: s.set_display_rotation(degrees))
    (rejection,) = cut_clips(path, config=settings()).rejected
    assert rejection.reason == "rotation"


def set_sar(sar: Fraction) -> Any:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = sar

    return prepare


@pytest.mark.parametrize("sar", [Fraction(2), Fraction(1, 2), Fraction(16, 11)])
def test_pixels_become_square(tmp_path: Path, sar: Fraction) -> None:
    path = numbered_video(tmp_path / "v.mp4", COUNT, fps=8, width=320, height=256, prepare=set_sar(sar))
    wide, high = (320 * sar, Fraction(256)) if sar > 1 else (Fraction(320), 256 / sar)
    clip = only_clip(path, settings(crop=Crop.none))
    assert min(clip.width, clip.height) == 256
    assert clip.width / clip.height == pytest.approx(float(wide / high), abs=0.01)
    expected = ffmpeg_frames(path, f"scale={clip.width}:{clip.height}:flags=bicubic", clip.width, clip.height)
    assert psnr(frames_of(clip), expected) > 38
    square = only_clip(path, settings())
    side = float(min(wide, high))
    chain = (
        f"scale={round(float(wide))}:{round(float(high))}:flags=bicubic,crop={side}:{side},scale=256:256:flags=bicubic"
    )
    assert psnr(frames_of(square), ffmpeg_frames(path, chain, 256, 256)) > 30


@pytest.mark.parametrize(("width", "height"), [(321, 255), (255, 321), (639, 257)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    path = numbered_video(tmp_path / "v.mkv", COUNT, width=width, height=height, fps=8, pix_fmt="yuv444p")
    clip = only_clip(path, settings())
    assert (clip.width, clip.height) == (256, 256)
    assert numbers(clip.data) == list(range(COUNT))
    kept = only_clip(path, settings(crop=Crop.none))
    assert kept.width % 2 == kept.height % 2 == 0
    assert kept.width / kept.height == pytest.approx(width / height, rel=0.01)


@pytest.mark.parametrize(
    ("pix_fmt", "codec"),
    [("yuv420p10le", "libx264"), ("yuv422p", "libx264"), ("yuvj420p", "libx264"), ("rgb24", "png")],
)
def test_depths_and_layouts_become_8_bits_of_the_same_colours(tmp_path: Path, pix_fmt: str, codec: str) -> None:
    path = numbered_video(tmp_path / "v.mov", COUNT, width=256, height=256, fps=8, pix_fmt=pix_fmt, codec=codec)
    clip = only_clip(path, settings())
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == pix_fmt
    truth = np.stack([picture(n, 256, 256) for n in range(COUNT)])
    assert psnr(frames_of(clip), truth) > 33
    assert abs(frames_of(clip).astype(float).mean() - truth.mean()) < 1.5  # neither range nor matrix is mistaken


def test_levels_of_both_ranges_become_those_of_the_limited_one_in_one_source() -> None:
    """White is 235 there (ITU-R BT.601), and 255 in full range; a source may change from one to the other."""
    resize = Resizer(settings(short_side=64), Fraction(1))
    for code, white in ((1, 235), (2, 255), (1, 235)):
        frame = av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), format="yuv420p")
        frame.planes[0].update(np.full((64, frame.planes[0].line_size), white, np.uint8).tobytes())
        frame.color_range = code
        stored = resize(frame)
        assert isinstance(stored, av.VideoFrame)
        assert stored.to_ndarray(format="yuv420p")[:64].mean() == pytest.approx(235, abs=0.6)


@pytest.mark.parametrize("width", range(258, 290))
def test_the_square_is_in_the_middle_at_even_pixels(width: int) -> None:
    """Odd ones would part the samples of half-size colour."""
    (kept, _, left, top), scaled = _crop_and_scale(width, 258, Fraction(1), Crop.square, 256)
    assert (kept, top, scaled) == (258, 0, (256, 256))
    assert left % 2 == 0
    assert abs(left - (width - 258) / 2) <= 1.5
    (_, kept, side, top), _ = _crop_and_scale(258, width, Fraction(1), Crop.square, 256)
    assert (kept, side, top) == (258, 0, left), "and so for a picture that stands on its side"


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (672, 224, None),  # each limit itself is allowed
        (224, 672, None),
        (673, 224, "aspect"),
        (223, 300, "too_small"),
        (300, 223, "too_small"),
        (320, 320, "too_large"),
    ],
)
def test_sizes_are_refused_beyond_their_limits(width: int, height: int, reason: str | None) -> None:
    config = ClipConfig(min_short_side=224, max_aspect=3.0, max_pixels=101_000)
    pixels = 101_000 if reason != "too_large" else 101_001
    found = size_problem(width, height, pixels, config)
    assert (found.reason if found else None) == reason


def test_bars_that_are_black_in_all_looks_are_cut_away_on_each_side(tmp_path: Path) -> None:
    """Those of the first and last pictures are wider: titles. Cut away, the brightest column is at the very edge."""
    images = [picture(n, 320, 256) for n in range(40)]
    for n, image in enumerate(images):
        image[:, 32:40] = image[:, -8:] = image[:8] = 255
        image[:, :32] = image[-16:] = 0
        if n < 10 or n >= 30:
            image[:64] = image[:, :80] = 0
    path = write_video(tmp_path / "v.mp4", images, options={"g": "4", "crf": "1"})
    with VideoSource(path) as source:
        bars = find_bars(source, source.scan(None, None, 100))
    assert bars == Bars(top=0, bottom=16, left=32, right=0)
    clip = only_clip(path, settings(letterbox=Letterbox.crop, crop=Crop.none, short_side=240, min_seconds=0.5))
    assert (clip.width, clip.height) == (288, 240)
    frames = frames_of(clip)[4:9].mean(axis=(0, 3))
    assert min(frames[:, :7].min(), frames[:, -7:].min(), frames[:7].min()) > 200


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_rejected(tmp_path: Path, transfer: int) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.color_trc = transfer

    path = numbered_video(tmp_path / "v.mp4", COUNT, fps=8, pix_fmt="yuv420p10le", prepare=prepare)
    (rejection,) = cut_clips(path, config=settings()).rejected
    assert rejection.reason == "hdr"
    assert rejection.measured["transfer"] == {16: "PQ", 18: "HLG"}[transfer]


def interlaced_video(path: Path, top_first: bool) -> Path:
    """Each frame weaves picture 2n, shown first, with picture 2n + 1, in the other lines."""
    images = []
    for n in range(COUNT):
        first, second = picture(2 * n, 320, 512), picture(2 * n + 1, 320, 512)
        woven = first.copy()
        woven[(1 if top_first else 0) :: 2] = second[(1 if top_first else 0) :: 2]
        images.append(woven)
    order = "tff=1" if top_first else "bff=1"
    return write_video(path, images, fps=8, options={"flags": "+ildct+ilme", "x264-params": order, "crf": "8"})


@pytest.mark.parametrize("top_first", [True, False])
def test_of_interlaced_frames_the_first_field_is_shown(tmp_path: Path, top_first: bool) -> None:
    path = interlaced_video(tmp_path / "v.mp4", top_first)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    result = cut_clips(path, config=settings())
    (clip,) = result.clips
    assert numbers(clip.data) == [2 * n for n in range(COUNT)]
    assert result.source["interlaced"] is True
    assert (clip.width, clip.height) == (256, 256)


def test_interlaced_can_be_refused(tmp_path: Path) -> None:
    path = interlaced_video(tmp_path / "v.mp4", True)
    (rejection,) = cut_clips(path, config=settings(interlaced=Interlaced.reject)).rejected
    assert rejection.reason == "interlaced"


@pytest.mark.parametrize(
    ("width", "height", "changes", "reason"),
    [
        (320, 192, {"min_short_side": 224}, "too_small"),
        (192, 320, {"min_short_side": 224}, "too_small"),
        (640, 160, {}, "aspect"),
        (640, 320, {"max_pixels": 640 * 320 - 1}, "too_large"),
    ],
)
def test_sizes_are_refused_before_decoding(
    tmp_path: Path, width: int, height: int, changes: dict[str, int], reason: str
) -> None:
    path = numbered_video(tmp_path / "v.mp4", COUNT, width=width, height=height, fps=8)
    result = cut_clips(path, config=settings(**changes))
    (rejection,) = result.rejected
    assert (rejection.number, rejection.reason) == (None, reason)
    assert (rejection.measured["width"], rejection.measured["height"]) == (width, height)
    assert "rotation" not in result.source  # known only from decoded frames


def test_a_size_that_changes_in_the_middle_parts_clips_and_is_judged_anew(tmp_path: Path) -> None:
    path = tmp_path / "v.ts"
    parts = [(tmp_path / f"{n}.ts", size) for n, size in enumerate(((320, 256), (640, 480), (128, 96)))]
    offset = 0
    for part, (width, height) in parts:  # transport streams may be laid end to end
        images = [picture(n, width, height) for n in range(COUNT)]
        write_video(part, images, fps=8, pts=[offset + n for n in range(COUNT)], options={"g": "1"})
        offset += COUNT
    path.write_bytes(b"".join(part.read_bytes() for part, _ in parts))
    config = settings(crop=Crop.none, min_short_side=200, max_damage=1.0)
    result = cut_clips(path, config=config)
    assert [(clip.width, clip.height) for clip in result.clips] == [(320, 256), (342, 256)]
    assert [item.reason for item in result.rejected] == ["too_small"]
