"""Encodes stored pictures as one mp4 and measures the loss. Equal pictures give equal bytes, on every x86 processor.

For this, one thread encodes, and x264 runs with `cpu-independent`. Without that option, the macroblock tree of x264
(which spreads bits over the picture) runs code that is written for the processor's instruction set, and this code
spoils the bytes in two ways:

* Each instruction set rounds in its own way, so two processors give different bytes for the same pictures.
* The AVX-512 code takes the macroblocks of a row by eights. When a row is no multiple of eight macroblocks long (128
  pixels), this code also counts in what lies in memory after the row, and after the last row that is uninitialised
  memory. So one processor gives different bytes from time to time.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from data_pipeline.cut.config import ClipConfig, Codec

FORMAT = 3  # to be raised when the stored bytes change for another reason than a new FFmpeg or x264
PEAK = 255.0**2


def encoder_version() -> str:
    """The versions that decide the bytes of a clip beside its pictures and the settings; a part of the plan."""
    libraries = "+".join(f"{name[3:]}-{'.'.join(map(str, av.library_versions[name]))}" for name in _LIBRARIES)
    return f"vidtwin-{FORMAT}/av-{av.__version__}/{libraries}"


_LIBRARIES = ("libavcodec", "libavformat", "libavfilter", "libswscale")


def h264_options(config: ClipConfig) -> dict[str, str]:
    """The options of libavcodec's encoder libx264 for clips of these settings."""
    return {
        "preset": config.preset,
        "crf": str(config.crf),
        "g": str(config.gop),
        "bf": str(config.bframes),
        "x264-params": "cpu-independent=1",
    }


@dataclass
class Encoded:
    """One mp4 and the luma PSNR (dB) of its frames against the pictures that went in."""

    data: bytes
    psnr: float  # of the mean squared error over all frames
    worst_psnr: float  # of the worst frame


def encode_pictures(pictures: list[av.VideoFrame], config: ClipConfig) -> Encoded:
    """Encode pictures (yuv420p, limited range, equal sizes) as frames k / fps of an mp4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        first = pictures[0]
        if config.codec is Codec.h264:
            stream = container.add_stream("libx264", rate=config.fps)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.options = h264_options(config)
            stream.codec_context.flags |= Flags.psnr
            for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
                setattr(stream.codec_context, name, int(getattr(first, name)))
        else:
            stream = container.add_stream("mjpeg", rate=config.fps)
            stream.pix_fmt = "yuvj420p"
            quantizer = str(config.jpeg_quality)
            stream.codec_context.options = {"qmin": quantizer, "qmax": quantizer, "huffman": "optimal"}
        stream.width, stream.height = first.width, first.height
        stream.codec_context.thread_count = 1
        errors: list[float] = []
        for k, picture in enumerate(pictures):
            picture.pts, picture.time_base, picture.pict_type = k, Fraction(1, config.fps), 0
            for packet in stream.encode(picture):
                errors += _luma_error(packet)
                container.mux(packet)
        for packet in stream.encode(None):
            errors += _luma_error(packet)
            container.mux(packet)
    data = buffer.getvalue()
    # x264 does not deblock its own copy of a frame that no other frame refers to, so its figure for it is not exact.
    if len(errors) != len(pictures) or config.bframes or config.gop == 1:
        errors = squared_errors(data, pictures)
    pixels = first.width * first.height
    return Encoded(data, _psnr(sum(errors) / (pixels * len(errors))), _psnr(max(errors) / pixels))


def _luma_error(packet: av.Packet) -> list[float]:
    """Sum of squared luma errors of the packet's frame.

    x264 knows it, because it decodes what it writes. The list is empty for other encoders.
    """
    if not packet.has_sidedata("quality_stats"):
        return []
    # AV_PKT_DATA_QUALITY_STATS: u32 quality, u8 picture type, u8 error count, u16 reserved, i64 per plane
    stats = bytes(packet.get_sidedata("quality_stats"))
    return [float(struct.unpack_from("<q", stats, 8)[0])] if stats[5] else []


def squared_errors(data: bytes, pictures: list[av.VideoFrame]) -> list[float]:
    """Sum of squared luma errors of each frame of an mp4, which is decoded for this."""
    errors = []
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame, picture in zip(container.decode(video=0), pictures, strict=True):
            limited = frame.reformat(format="yuv420p", dst_color_range="MPEG")
            errors.append(float(cv2.norm(luma(limited), luma(picture), cv2.NORM_L2SQR)))
    return errors


def luma(picture: av.VideoFrame) -> NDArray[np.uint8]:
    """The luma plane [H, W] of a planar 8-bit picture, without a copy."""
    plane = picture.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _psnr(mean_squared_error: float) -> float:
    """dB; 100 for a perfect copy, so that the value stays finite in JSON."""
    return 100.0 if mean_squared_error <= PEAK / 1e10 else 10.0 * math.log10(PEAK / mean_squared_error)
