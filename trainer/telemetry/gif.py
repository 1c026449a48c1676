"""Clips side by side as a moving picture: a GIF, which every browser shows and which needs no moviepy."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from trainer.evaluation.pictures import Frames, side_by_side

SMALLEST = 128  # pixels; smaller clips are enlarged by a whole factor
GAP = 2  # pixels between clips


def gif_of(columns: Tensor, fps: float = 8.0) -> tuple[bytes, int, int]:
    """A GIF that shows clips next to each other, with its height and width in pixels.

    Args:
        columns: uint8 [columns, T, H, W, 3].
        fps: frames a second.
    """
    frames = side_by_side(enlarged(columns), GAP)
    return encode_gif(frames, fps), frames.shape[1], frames.shape[2]


def enlarged(columns: Tensor) -> list[Frames]:
    """The clips of uint8 [columns, T, H, W, 3]. Pixels of small clips are repeated until H is `SMALLEST` or more."""
    factor = max(1, -(-SMALLEST // columns.shape[2]))
    return list(columns.numpy().repeat(factor, axis=2).repeat(factor, axis=3))


def encode_gif(frames: Frames, fps: float) -> bytes:
    """uint8 [T, H, W, 3] -> an endlessly repeating GIF."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()
