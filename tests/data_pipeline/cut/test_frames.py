"""Frames of whole videos against ffmpeg's own output, against closed forms, and against what clips are cut of."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from numpy.typing import NDArray

from data_pipeline.cut import frames
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.frames import Break, NumberedFrame, break_text
from data_pipeline.cut.geometry import ClipRefused, Resizer
from data_pipeline.cut.video import UndecodableVideo, VideoSource
from data_pipeline.raw_video import RawGeometry, raw_geometry
from tests.data_pipeline.cut.videos import numbered_video, numbers, picture, read_number, real_video, write_video
from tests.tools.frames import open_frames

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is the witness")


def ffmpeg(*arguments: str) -> bytes:
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True, stdout=subprocess.PIPE).stdout


def decoded_by_ffmpeg(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    raw = ffmpeg(
        "-i", str(path), "-vf", f"scale={width}:{height}:flags=bilinear", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def with_display_matrix(mp4: bytes, degrees: int) -> bytes:
    """The file with the 3x3 matrix of its track header (ISO 14496-12, section 8.3.2) set to a clockwise turn."""
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    at = mp4.index(b"tkhd") + 44
    return mp4[:at] + matrix + mp4[at + 36 :]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=30:d=0.4", "-pix_fmt", "yuv420p", str(path))
    return path


@needs_ffmpeg
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright(plain: Path, tmp_path: Path, degrees: int) -> None:
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(with_display_matrix(plain.read_bytes(), degrees))
    with open_frames(turned) as reader:
        frames = list(reader)
        assert reader.fps == 30
    height, width = frames[0].shape[:2]
    assert (width, height) == ((96, 64) if degrees % 180 == 0 else (64, 96))
    expected = decoded_by_ffmpeg(turned, width, height)
    assert len(frames) == len(expected) == 12
    assert np.abs(np.stack(frames).astype(int) - expected).mean() < 2


@needs_ffmpeg
def test_pixels_become_square(plain: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.mp4"
    ffmpeg("-i", str(plain), "-vf", "setsar=4/3", str(wide))
    with open_frames(wide) as reader:
        first = next(iter(reader))
    assert first.shape == (64, 128, 3)
    assert np.abs(first.astype(int) - decoded_by_ffmpeg(wide, 128, 64)[0]).mean() < 8


@needs_ffmpeg
def test_raw_yuv_takes_its_geometry_from_its_name(plain: Path, tmp_path: Path) -> None:
    raw = tmp_path / "videoSRC01_96x64_30.yuv"
    ffmpeg("-i", str(plain), "-f", "rawvideo", "-pix_fmt", "yuv420p", str(raw))
    with open_frames(raw) as reader, open_frames(plain) as same:
        assert reader.fps == 30
        np.testing.assert_array_equal(np.stack(list(reader)), np.stack(list(same)))


def test_raw_names_say_size_and_rate() -> None:
    assert raw_geometry("videoSRC05_1920x1080_25.yuv") == RawGeometry(1920, 1080, Fraction(25))
    assert raw_geometry("a_b_640x360_29.97fps.YUV") == RawGeometry(640, 360, Fraction("29.97"))
    for name in ("clip.yuv", "a_0x16_25.yuv", "a_16x16_0.yuv"):
        with pytest.raises(ValueError, match=rf"^{name}: a raw \.yuv file must be named"):
            raw_geometry(name)


def test_what_is_not_a_video_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video" * 100)
    with pytest.raises(ValueError, match=r"bad\.mp4: cannot be opened"), open_frames(bad):
        pass
    with pytest.raises(ValueError, match=r"absent\.mp4 cannot be opened"), open_frames(tmp_path / "absent.mp4"):
        pass


def read(path: Path, interval: int = 1) -> list[NumberedFrame[NDArray[np.uint8]] | Break]:
    with frames.open_frames(path) as reader:
        return list(reader.frames(interval, lambda pixels: pixels))


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_mirrored_frames_are_shown_as_the_matrix_says(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """A bright corner at (-1, -1), as seen from the middle, moves to (a x + c y, b x + d y)."""
    image = np.full((64, 96, 3), 40, np.uint8)
    image[:16, :16] = 220
    a, b, c, d = (value << 16 for value in matrix)
    path = write_video(
        tmp_path / "v.mp4", [image] * 2, prepare=lambda s: s.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    )
    with open_frames(path) as video:
        (first, _) = video
    right, down = -matrix[0] - matrix[2] > 0, -matrix[1] - matrix[3] > 0
    corner = first[-8:] if down else first[:8]
    assert (corner[:, -8:] if right else corner[:, :8]).mean() > 200
    assert first.mean() < 60


def test_the_film_is_read_and_not_the_cover(tmp_path: Path) -> None:
    """The cover is larger, and is added first."""
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        film = container.add_stream("libx264", rate=25)
        for stream, width, height, form in ((cover, 640, 480, "yuvj420p"), (film, 96, 64, "yuv420p")):
            stream.width, stream.height, stream.pix_fmt = width, height, form
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode(None))
        for number in range(5):
            image = np.full((64, 96, 3), 40 * number, np.uint8)
            container.mux(film.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(film.encode(None))
    with open_frames(path) as video:
        assert [round(frame.mean() / 40) for frame in video] == list(range(5))


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_refused_as_a_build_refuses_it(tmp_path: Path, transfer: int) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.color_trc = transfer

    path = numbered_video(tmp_path / "v.mp4", 18, fps=8, pix_fmt="yuv420p10le", prepare=prepare)
    (gap,) = read(path)
    assert isinstance(gap, Break)
    (rejection,) = cut_clips(path, config=ClipConfig(min_short_side=64)).rejected
    assert (gap.reason, gap.measured) == (rejection.reason, rejection.measured)
    assert (gap.start, gap.end) == (0, pytest.approx(18 / 8))
    assert break_text(gap) == f"0.00 to 2.25 s: hdr (transfer {'PQ' if transfer == 16 else 'HLG'})"


@pytest.mark.parametrize("top_first", [True, False])
def test_of_interlaced_frames_the_first_field_is_shown_at_full_height(tmp_path: Path, top_first: bool) -> None:
    """Each frame weaves picture 2n, shown first, with picture 2n + 1."""
    images = []
    for n in range(6):
        woven, second = picture(2 * n, 320, 512), picture(2 * n + 1, 320, 512)
        odd = 1 if top_first else 0
        woven[odd::2] = second[odd::2]
        images.append(woven)
    order = "tff=1" if top_first else "bff=1"
    path = write_video(tmp_path / "v.mp4", images, options={"flags": "+ildct+ilme", "x264-params": order, "crf": "8"})
    with open_frames(path) as video:
        shown = list(video)
    assert shown[0].shape == (512, 320, 3)
    assert [read_number(frame) for frame in shown] == [2 * n for n in range(6)]


@pytest.mark.parametrize(("size", "matrix"), [((1280, 544), 1), ((720, 1280), 1), ((1024, 576), 5), ((320, 240), 5)])
@pytest.mark.parametrize("suffix", [".mp4", ".yuv"])
def test_colours_without_a_tag_are_those_of_high_definition_or_not(
    tmp_path: Path, size: tuple[int, int], matrix: int, suffix: str
) -> None:
    """Y'CbCr of red by ITU-R BT.709 (1) or BT.601 (5) in limited range becomes red again, in any container."""
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}[matrix]
    y, cb, cr = 16 + 219 * red, 128 - 112 * red / (1 - blue), 128 + 112
    planes = [np.full((size[1], size[0]), round(y), np.uint8)]
    planes += [np.full((size[1] // 2, size[0] // 2), round(value), np.uint8) for value in (cb, cr)]
    flat = np.concatenate([plane.ravel() for plane in planes]).reshape(size[1] * 3 // 2, size[0])
    if suffix == ".yuv":
        path = tmp_path / f"v_{size[0]}x{size[1]}_25.yuv"
        path.write_bytes(flat.tobytes() * 2)
    else:
        frame = av.VideoFrame.from_ndarray(flat, format="yuv420p")
        path = write_video(tmp_path / "v.mp4", [frame] * 2, options={"qp": "0"})
    with open_frames(path) as video:
        (first, _) = video
    assert np.abs(first[8:-8, 8:-8].reshape(-1, 3).mean(axis=0) - (255, 0, 0)).max() <= 3
    config = ClipConfig(fps=1, short_side=64, min_short_side=64, min_seconds=1, max_seconds=2)
    with VideoSource(path) as source:
        stored = Resizer(config, source.sar)(next(source.container.decode(source.stream)))
    assert isinstance(stored, av.VideoFrame)
    assert int(stored.colorspace) == (1 if matrix == 1 else 2), "a clip says so itself"


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_every_nth_shown_frame_is_given_with_its_number_and_time(tmp_path: Path, interval: int) -> None:
    path = numbered_video(tmp_path / "v.mkv", 20, fps=25, options={"bf": "3"})
    found = read(path, interval)
    assert not [item for item in found if isinstance(item, Break)]
    taken = [item for item in found if isinstance(item, NumberedFrame)]
    assert [item.number for item in taken] == list(range(0, 20, interval))
    assert [read_number(item.picture) for item in taken] == list(range(0, 20, interval))
    assert [item.time for item in taken] == pytest.approx([n / 25 for n in range(0, 20, interval)], abs=1e-3)


def test_damage_parts_the_frames_where_it_parts_clips(tmp_path: Path) -> None:
    """At the rate of the clips both see the same frames: the clean ones, and the same stretch named as damaged."""
    path = numbered_video(tmp_path / "v.mkv", 60, fps=8, options={"g": "10", "crf": "8"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    found = read(path)
    gaps = [item for item in found if isinstance(item, Break)]
    config = ClipConfig(
        min_short_side=64, min_seconds=0.125, max_seconds=60, max_damage=1, min_motion=0, max_change=255
    )
    result = cut_clips(path, config=config)
    rejected = [item for item in result.rejected if item.reason == "damaged"]
    assert [(gap.start, gap.end) for gap in gaps] == [(item.start, item.end) for item in rejected] != []
    stored = [number for clip in result.clips for number in numbers(clip.data)]
    assert [read_number(item.picture) for item in found if isinstance(item, NumberedFrame)] == stored
    assert 20 <= len(stored) < 60


def test_a_frame_behind_a_long_refused_stretch_is_not_lost_by_an_error_soon_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways through a file give the same: with the times of its packets first, and without them."""
    path = numbered_video(tmp_path / "v.mp4", 60, options={"g": "10", "crf": "8", "bf": "0"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        refused, packet = {packet.pts for packet in packets[10:40]}, packets[57]
    data, begin = bytearray(path.read_bytes()), (packet.pos or 0) + 4
    data[begin : begin + packet.size - 6] = bytes(packet.size - 6)
    path.write_bytes(data)
    show = frames.RgbPictures.__call__
    monkeypatch.setattr(
        frames.RgbPictures,
        "__call__",
        lambda self, frame: ClipRefused("hdr", ()) if frame.pts in refused else show(self, frame),
    )
    found = read(path)
    scan = VideoSource.scan
    monkeypatch.setattr(VideoSource, "scan", lambda *window: replace(scan(*window), planned=False))
    expected = read(path)
    assert [getattr(item, "number", item) for item in found] == [getattr(item, "number", item) for item in expected]
    assert [item.number for item in found if isinstance(item, NumberedFrame)] == [*range(10), 40]


def test_a_picture_too_wide_for_the_memory_of_any_machine_names_its_file(tmp_path: Path) -> None:
    """A box `pasp` (ISO 14496-12, section 12.1.4) that makes each pixel 60 000 times as wide as high."""
    path = write_video(tmp_path / "v.mp4", [picture(0, 64, 64)] * 4, codec="mpeg4", prepare=_wide_pixels)
    data = path.read_bytes()
    at = data.index(b"pasp") + 4
    path.write_bytes(data[:at] + struct.pack(">II", 60_000, 1) + data[at + 8 :])
    with pytest.raises(UndecodableVideo, match=r"^v\.mp4: "):
        read(path)


def _wide_pixels(stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(3, 2)


def test_raw_pictures_that_end_in_mid_frame_are_named(tmp_path: Path) -> None:
    """Raw pictures depend on no others, so the 40 whole ones stay."""
    path = tmp_path / "v_32x16_25.yuv"
    path.write_bytes(bytes([128]) * (32 * 16 * 3 // 2 * 40 + 100))
    *taken, gap = read(path)
    assert isinstance(gap, Break)
    assert (gap.reason, gap.start, gap.end) == ("truncated", 40 / 25, pytest.approx(41 / 25))
    assert [item.number for item in taken if isinstance(item, NumberedFrame)] == list(range(40))


def test_frames_come_in_their_order_where_the_decoder_misjudges_it() -> None:
    """All frames of a real video with B-frames, at the times of its packets, which no decoder has touched."""
    path = real_video("bigbuckbunny.mp4")
    with av.open(str(path)) as container:
        times = sorted(float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size)
    with frames.open_frames(path) as reader:
        found = list(reader.frames(1, lambda pixels: None))
    assert [item.time for item in found if isinstance(item, NumberedFrame)] == pytest.approx(times, abs=1e-6)
    assert len(found) == len(times), "and nothing is missing"
