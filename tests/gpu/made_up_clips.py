"""A small dataset of moving waves, for a machine that has no videos."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.data_pipeline.dataset.tiny_dataset import Clip, split_into_shards, write_dataset

FRAMES, SIDE = 12, 64


def write_waves(root: Path, train: int = 16, val: int = 6) -> Path:
    """Write clips of both splits, 12 frames of 64 x 64; returns `root`."""
    clips = [wave(number, "train" if number < train else "val") for number in range(train + val)]
    return write_dataset(root, split_into_shards(clips, (8,)), short_side=SIDE)


def wave(number: int, split: str) -> Clip:
    """One clip; another wave for each number."""
    t, y, x = np.meshgrid(np.arange(FRAMES), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    shade = 128 + 100 * np.sin(0.2 * x + 0.3 * t * (1 + number % 3) + number) * np.cos(0.15 * y + number)
    frames = np.repeat(shade.astype(np.uint8)[..., None], 3, axis=3)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": "23", "preset": "ultrafast", "bf": "0", "x264-params": "keyint=8:min-keyint=8:scenecut=0"}
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for place, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Clip(f"{split}{number:05d}", buffer.getvalue(), FRAMES, SIDE, SIDE, f"wave {number}", "", split)
