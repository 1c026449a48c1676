"""Whole videos through the model, window by window, in constant memory.

The model takes T frames at a time. Windows follow one another. If fewer than T frames remain at the end, the last
window begins earlier, with frames that are already written, and only its new frames are written. So every frame of the
output belongs to one frame of the input, and none is invented. A video with fewer than T sampled frames is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.precision import without_tf32
from model.vidtwin import VidTwin
from trainer.evaluation.frames import FrameReader, open_frames
from trainer.evaluation.metrics import frames_of, psnr, reconstruct, to_unit
from trainer.evaluation.pictures import VideoWriter, side_by_side
from trainer.evaluation.sources import resize_and_crop, sampling_interval

T = TypeVar("T")


@dataclass
class Written:
    """The file that was written."""

    frames: int
    fps: Fraction
    psnr: float | None  # mean over the frames; None where the output has no source to be compared with


class TooShort(ValueError):
    """A video with fewer frames than a window of the model has."""


def covering_windows(frames: Iterable[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Windows of `size` items that cover a sequence, each with the number of its last items that are new.

    Raises:
        TooShort: the sequence is shorter than one window.
    """
    before: list[T] = []
    held: list[T] = []
    for frame in frames:
        held.append(frame)
        if len(held) == size:
            yield held, size
            before, held = held, []
    if not before:
        raise TooShort(
            f"only {len(held)} frames, but the model needs windows of {size}; a smaller --interval samples more frames"
        )
    if held:
        yield (before + held)[-size:], len(held)


def reconstruct_video(
    model: VidTwin,
    video: str | Path,
    output: str | Path,
    *,
    interval: int | None = None,
    beside: bool = True,
    batch: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Write the reconstruction of a video, beside the source if `beside` is set.

    Args:
        model: in evaluation mode. Frames are scaled and centre-cropped to its square.
        video, output: files. The output is H.264 at the source's rate divided by `interval`.
        interval: use every n-th frame; None: round(fps / 25), so that 50 and 60 fps become 25 and 30.
        beside: write the source left of the reconstruction; False writes the reconstruction alone.
        batch: windows put through the network together.
        progress: called with the number of frames written.
    Raises:
        ValueError: the video cannot be read or is shorter than one window.
    """
    size, count = model.config.image_size, model.config.frames
    total, written = 0.0, 0
    with open_frames(video) as reader:
        step = interval or sampling_interval(float(reader.fps))
        fps = reader.fps / step
        try:
            with VideoWriter(output, fps) as writer:
                windows = covering_windows(_square_frames(reader, step, size), count)
                while group := list(islice(windows, batch)):
                    real = torch.stack([torch.stack(window, dim=1) for window, _ in group])
                    fake = reconstruct(model, real.to(model.last_layer.weight.device)).cpu()
                    for source, recon, (_, new) in zip(real, fake, group, strict=True):
                        a, b = source[:, -new:], recon[:, -new:]
                        total += psnr(frames_of(a[None]), frames_of(b[None])).sum().item()
                        shown = side_by_side([to_frames(a), to_frames(b)]) if beside else to_frames(b)
                        for frame in shown:
                            writer.write(frame)
                        written += new
                    if progress is not None:
                        progress(written)
        except TooShort as error:
            raise TooShort(f"{video}: {error}") from error
    return Written(written, fps, total / written)


def reenact(
    model: VidTwin,
    structure_video: str | Path,
    dynamics_video: str | Path,
    output: str | Path,
    *,
    interval: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Structure of one video with the dynamics of another (paper section 4.3): structure | dynamics | mixed.

    Frame n of one video goes with frame n of the other, and the shorter video sets the length. The output has the rate
    of the video that gives the structure.

    Raises:
        ValueError: a video cannot be read or is shorter than one window.
    """
    size, count = model.config.image_size, model.config.frames
    written = 0
    with open_frames(structure_video) as first, open_frames(dynamics_video) as second:
        steps = [interval or sampling_interval(float(reader.fps)) for reader in (first, second)]
        read = [0, 0]  # frames
        pairs = zip(
            _counted(_square_frames(first, steps[0], size), read, 0),
            _counted(_square_frames(second, steps[1], size), read, 1),
            strict=False,
        )
        fps = first.fps / steps[0]
        try:
            with VideoWriter(output, fps) as writer:
                for window, new in covering_windows(pairs, count):
                    parts = [torch.stack(frames, dim=1) for frames in zip(*window, strict=True)]
                    mixed = mix(model, parts[0][None], parts[1][None])[0]
                    for frame in side_by_side([to_frames(part[:, -new:]) for part in (*parts, mixed)]):
                        writer.write(frame)
                    written += new
                    if progress is not None:
                        progress(written)
        except TooShort as error:
            # The first video is asked first, so it has given one frame more where the second one has ended.
            shorter = dynamics_video if read[0] > read[1] else structure_video
            raise TooShort(f"{shorter}: {error}") from error
    return Written(written, fps, None)


@torch.no_grad()
@without_tf32()
def mix(model: VidTwin, structure: Tensor, dynamics: Tensor) -> Tensor:
    """Decode the structure latent of one clip with the dynamics latent of another; all [B, 3, T, S, S] in [0, 1]."""
    device = model.last_layer.weight.device
    shape = model.encode(structure.to(device) * 2 - 1)
    motion = model.encode(dynamics.to(device) * 2 - 1)
    return to_unit(model.decode(shape._replace(dynamics=motion.dynamics))).cpu()


def to_frames(video: Tensor) -> NDArray[np.uint8]:
    """[3, T, H, W] in [0, 1] as uint8 [T, H, W, 3]."""
    return (video.permute(1, 2, 3, 0) * 255).round().byte().cpu().numpy()


def _counted(items: Iterator[T], counts: list[int], place: int) -> Iterator[T]:
    """The same items, counted in `counts[place]`."""
    for item in items:
        counts[place] += 1
        yield item


def _square_frames(reader: FrameReader, step: int, size: int) -> Iterator[Tensor]:
    """Every `step`-th frame as [3, S, S] in [0, 1]."""
    for frame in islice(reader, 0, None, step):
        yield resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1).float() / 255, size)
