"""Windows of stored clips against a decode of the whole clip from its first frame, by ffmpeg and by PyAV."""

import errno
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import av.error
import numpy as np
import pytest
from PIL import Image

from data_pipeline.cut.config import ClipConfig
from data_pipeline.dataset.tar import ClipError
from data_pipeline.read import clip_decoder
from data_pipeline.read.clip_decoder import View, ViewDecoder, decode_window
from data_pipeline.read.mp4_packets import read_packet_table
from tests.data_pipeline.dataset.tiny_dataset import encode_clip, real_frames
from tests.tools.heap import leave_in_memory

FRAMES = 21
FPS = Fraction(ClipConfig.fps)  # what the clips here are written with


def whole(data: bytes) -> np.ndarray:
    """Every frame in RGB [T, H, W, 3], decoded from the start."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def encode_mjpeg(count: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=8, options={"qscale": "3", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(count):
            source = av.VideoFrame.from_ndarray(real_frames("bikes.mp4", 64, 48)[number], format="yuv420p")
            frame = source.reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture(scope="module", params=["gop1", "gop4", "gop16", "gop8-b2", "gop50-b3", "mjpeg"])
def clip(request: pytest.FixtureRequest) -> bytes:
    if request.param == "mjpeg":
        return encode_mjpeg(FRAMES)
    gop, _, b = request.param[3:].partition("-b")
    return encode_clip("bikes.mp4", 5, FRAMES, 64, 48, gop=int(gop), b_frames=int(b or 0))


def test_every_window_is_exactly_the_frames_of_a_whole_decode(clip: bytes) -> None:
    frames = whole(clip)
    assert len(frames) == FRAMES
    for stride in (1, 2, 5):
        for count in (1, 4):
            for start in range(FRAMES - (count - 1) * stride):
                expected = frames[start : start + (count - 1) * stride + 1 : stride]
                np.testing.assert_array_equal(decode_window(clip, start, count, stride, fps=FPS), expected)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not installed")
def test_frames_are_those_of_the_ffmpeg_command(clip: bytes, tmp_path: Path) -> None:
    """Luma planes: the command may convert colours with other code."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    pixels = "yuvj420p" if b"mp4v" in clip else "yuv420p"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", pixels, "-"]
    planes = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8)
    luma = planes.reshape(FRAMES, 72, 64)[:, :48].astype(float)
    full = decode_window(path, 9, 6, fps=FPS).astype(float) @ [0.299, 0.587, 0.114]
    full = full if b"mp4v" in clip else full * 219 / 255 + 16
    errors = [np.abs(full - luma[k : k + 6]).mean() if k + 6 <= FRAMES else 99 for k in range(FRAMES)]
    assert int(np.argmin(errors)) == 9
    assert errors[9] < 1.5


def test_both_ways_into_an_mp4_give_the_same_frames(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts() -> list[tuple]:
        frames = list(clip_decoder._decode(clip, 6, 5, 2, Fraction(8)))
        return [(f.to_ndarray().tobytes(), f.colorspace, f.color_range, f.color_trc, f.color_primaries) for f in frames]

    expected = facts()
    monkeypatch.setattr(clip_decoder, "read_packet_table", lambda data: None)
    assert facts() == expected


@pytest.mark.parametrize(("gop", "first"), [(1, lambda start: start), (4, lambda start: start // 4 * 4)])
def test_decoding_begins_at_the_last_keyframe_before_the_window(gop: int, first: Callable[[int], int]) -> None:
    data = encode_clip("bikes.mp4", 5, FRAMES, 64, 48, gop=gop)
    table = read_packet_table(data)
    assert table is not None
    for start in range(FRAMES):
        assert next(clip_decoder._from_table(data, table, start, Fraction(8)))[0] == first(start)


def test_a_frame_that_the_decoder_calls_damaged_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [(number, SimpleNamespace(is_corrupt=number == 2)) for number in range(4)]
    monkeypatch.setattr(clip_decoder, "read_packet_table", lambda data: "a table")
    monkeypatch.setattr(clip_decoder, "_from_table", lambda *_: (item for item in frames))
    assert len(list(clip_decoder._decode(b"", 0, 2, 1, Fraction(8)))) == 2
    with pytest.raises(ClipError, match="frame 2 is damaged"):
        list(clip_decoder._decode(b"", 0, 3, 1, Fraction(8)))


def test_a_view_is_the_square_of_the_whole_frames(clip: bytes) -> None:
    frames, decoder = whole(clip), ViewDecoder(FPS)
    for start, stride, top, left, side in (
        *((0, 1, 0, 0, 48), (9, 1, 16, 32, 32), (3, 3, 2, 30, 18)),
        *((1, 1, 4, 6, 24), (2, 1, 2, 2, 40)),  # multiples of 8 that are none of 16
    ):
        for flip in (False, True):
            out = np.empty((3, 5, side, side), np.uint8)
            decoder.decode(clip, View(start, stride, top, left, side, flip), out)
            square = frames[start : start + 5 * stride : stride, top : top + side, left : left + side]
            expected = (square[:, :, ::-1] if flip else square).transpose(3, 0, 1, 2)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("side", "size"), [(48, 24), (40, 32), (24, 48)])
def test_a_scaled_view_is_the_square_scaled(side: int, size: int) -> None:
    clip = encode_clip("bigbuckbunny.mp4", 0, 9, 64, 48)
    out = np.empty((3, 2, size, size), np.uint8)
    ViewDecoder(FPS).decode(clip, View(4, 1, 2 if side < 48 else 0, 8, side, False), out)
    top = 2 if side < 48 else 0
    for t in range(2):
        square = Image.fromarray(whole(clip)[4 + t, top : top + side, 8 : 8 + side])
        expected = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
        error = np.mean((out[:, t].transpose(1, 2, 0) - expected) ** 2)
        assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.parametrize(("side", "size"), [(48, 48), (46, 32), (34, 50), (40, 17)])
def test_frames_do_not_depend_on_what_lay_in_memory(clip: bytes, side: int, size: int) -> None:
    def frames(value: int, shift: int) -> tuple[bytes, bytes]:
        leave_in_memory(value, shift)
        out = np.full((3, FRAMES, size, size), value, np.uint8)
        ViewDecoder(FPS).decode(clip, View(0, 1, 0, 2, side, False), out)
        leave_in_memory(value, shift)
        return out.tobytes(), decode_window(clip, 0, FRAMES, fps=FPS).tobytes()

    first = frames(0, 0)
    for value, shift in ((255, 0), (255, 40), (170, 136)):
        assert frames(value, shift) == first


def test_colours_follow_the_matrix_of_the_clip() -> None:
    """A green picture tagged BT.709 comes back green; decoded as BT.601 it would miss by 20 levels and more."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1", "colorspace": "bt709"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = 1
        y, cb, cr = (16 + 219 * v if i == 0 else 128 + 224 * v for i, v in enumerate(_ycbcr_709(0.0, 0.8, 0.2)))
        planes = np.concatenate([np.full(64 * 48, y), np.full(32 * 24, cb), np.full(32 * 24, cr)])
        frame = av.VideoFrame.from_ndarray(planes.round().astype(np.uint8).reshape(72, 64), format="yuv420p")
        frame.pts, frame.time_base, frame.colorspace = 0, Fraction(1, 8), 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    out = np.empty((3, 1, 32, 32), np.uint8)
    ViewDecoder(FPS).decode(buffer.getvalue(), View(0, 1, 0, 0, 32, False), out)
    np.testing.assert_allclose(out.mean((1, 2, 3)), [0, 204, 51], atol=4)


def _ycbcr_709(red: float, green: float, blue: float) -> tuple[float, float, float]:
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # ITU-R BT.709 section 3.2
    return luma, (blue - luma) / 1.8556, (red - luma) / 1.5748


def test_what_is_not_there_is_an_error_that_says_so() -> None:
    clip = encode_clip("bikes.mp4", 5, FRAMES, 64, 48)
    with pytest.raises(ClipError, match="ends before frame 21"):
        decode_window(clip, 18, 4, fps=FPS)
    with pytest.raises(ClipError, match="too small for a square of 50"):
        ViewDecoder(FPS).decode(clip, View(0, 1, 0, 0, 50, False), np.empty((3, 1, 50, 50), np.uint8))
    for junk in (b"", b"not a video", clip[:200], clip[: len(clip) // 2]):
        with pytest.raises(ClipError):
            decode_window(junk, 0, FRAMES, fps=FPS)


def test_damaged_pictures_are_an_error_not_a_grey_patch() -> None:
    """Every single damaged byte either decodes to the true pixels' neighbours or raises ClipError, never crashes."""
    clip = encode_clip("bikes.mp4", 5, FRAMES, 64, 48)
    body = clip.index(b"mdat") + 4
    rng, raised = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(clip)
        at = int(rng.integers(body, len(clip) - 1000))
        damaged[at : at + 40] = rng.bytes(40)
        try:
            decode_window(bytes(damaged), 0, FRAMES, fps=FPS)
        except ClipError:
            raised += 1
    assert raised > 30


def test_lack_of_memory_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(*words: object) -> Iterator[None]:
        raise av.error.FFmpegError(errno.ENOMEM, "Cannot allocate memory")
        yield

    monkeypatch.setattr(clip_decoder, "_from_table", starved)
    with pytest.raises(MemoryError, match="the decoder ran out of memory"):
        decode_window(encode_clip("bikes.mp4", 5, FRAMES, 64, 48), 0, 1, fps=FPS)


def test_a_missing_frame_is_noticed() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in (0, 1, 2, 4, 5):
            frame = av.VideoFrame.from_ndarray(real_frames("bikes.mp4", 64, 48)[number], format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match="frame 3 is missing"):
        decode_window(buffer.getvalue(), 1, 4, fps=FPS)
