"""Whole videos through the model, window by window, in constant memory.

The model takes T frames at a time. Windows follow one another. If fewer than T frames remain at the end, the last
window begins earlier, with frames that are already written, and only its new frames are written. So every frame of the
output belongs to one frame of the input, and none is invented. A video with fewer than T sampled frames is refused.
No window reaches across a stretch of the video that cannot be used (`data_pipeline/cut/frames.py`); such stretches, and
stretches between them that are shorter than a window, are left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.cut.frames import Break, FrameReader, NumberedFrame, UndecodableVideo, break_text, open_frames
from data_pipeline.store.counted import counted
from model.precision import without_tf32
from model.vidtwin import VidTwin
from trainer.evaluation.metrics import frames_of, psnr, reconstruct, to_unit
from trainer.evaluation.pictures import VideoWriter, side_by_side
from trainer.evaluation.sources import sampling_interval
from trainer.evaluation.squares import square_of

T = TypeVar("T")


@dataclass
class Written:
    """The file that was written."""

    frames: int
    fps: Fraction
    psnr: float | None  # mean over the frames; None where the output has no source to be compared with
    left_out: list[str] = field(default_factory=list)  # stretches of the input, each with the reason


class TooShort(ValueError):
    """A video with fewer frames than a window of the model has."""


def covering_windows(frames: Iterable[T | Break], size: int, left_out: list[str]) -> Iterator[tuple[list[T], int]]:
    """Windows of `size` items that cover each stretch between breaks, with the number of their last items that are new.

    Args:
        left_out: gets the breaks and the stretches that are shorter than a window, in words.
    Raises:
        TooShort: no stretch is as long as a window.
    """
    before: list[T] = []
    held: list[T] = []
    longest, found = 0, False
    for frame in chain(frames, (None,)):  # None stands for the end
        if frame is not None and not isinstance(frame, Break):
            held.append(frame)
            if len(held) == size:
                yield held, size
                before, held, found = held, [], True
            continue
        if held and before:
            yield (before + held)[-size:], len(held)
        elif held:
            longest = max(longest, len(held))
            left_out.append(f"{counted(len(held), 'frame')} between breaks, fewer than a window of {size}")
        if isinstance(frame, Break):
            left_out.append(break_text(frame))
        before, held = [], []
    if not found:
        reasons = f" ({'; '.join(left_out)})" if len(left_out) > 1 or not longest else ""
        raise TooShort(
            f"only {counted(longest, 'frame')}{' in a row' if reasons else ''}, but the model needs windows of "
            f"{size}{reasons}"
        )


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
    left_out: list[str] = []
    with _opened(video) as reader:
        step = interval or sampling_interval(float(reader.fps))
        fps = reader.fps / step
        try:
            with VideoWriter(output, fps) as writer:
                windows = covering_windows(_square_frames(video, reader, step, size), count, left_out)
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
            raise TooShort(f"{video}: {error}{_remedy(step)}") from error
    return Written(written, fps, total / written, left_out)


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

    Frame n of one video goes with frame n of the other, and the shorter video sets the length. A frame that one of the
    videos lacks is left out of both. The output has the rate of the video that gives the structure.

    Raises:
        ValueError: a video cannot be read or is shorter than one window.
    """
    size, count = model.config.image_size, model.config.frames
    written = 0
    left_out: list[str] = []
    with _opened(structure_video) as first, _opened(dynamics_video) as second:
        steps = [interval or sampling_interval(float(reader.fps)) for reader in (first, second)]
        take = square_of(size)
        structures = _frames(structure_video, first, steps[0], take)
        pairs = _Pairs(structures, _frames(dynamics_video, second, steps[1], take), steps)
        fps = first.fps / steps[0]
        try:
            with VideoWriter(output, fps) as writer:
                for window, new in covering_windows(pairs, count, left_out):
                    parts = [torch.stack(frames, dim=1) for frames in zip(*window, strict=True)]
                    mixed = mix(model, parts[0][None], parts[1][None])[0]
                    for frame in side_by_side([to_frames(part[:, -new:]) for part in (*parts, mixed)]):
                        writer.write(frame)
                    written += new
                    if progress is not None:
                        progress(written)
        except TooShort as error:
            shorter = (structure_video, dynamics_video)[pairs.ended]
            raise TooShort(f"{shorter}: {error}{_remedy(steps[pairs.ended])}") from error
    return Written(written, fps, None, left_out)


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


class _Pairs:
    """Frame n of one video with frame n of the other, and the breaks of both; frames without a partner are left out.

    Attributes:
        ended: which of the two has ended, 0 or 1.
    """

    def __init__(
        self,
        first: Iterator[NumberedFrame[Tensor] | Break],
        second: Iterator[NumberedFrame[Tensor] | Break],
        steps: list[int],
    ) -> None:
        self._sides = (first, second)
        self._steps = steps
        self.ended = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Break]:
        held: list[NumberedFrame[Tensor] | None] = [None, None]
        while True:
            for side, frames in enumerate(self._sides):
                while held[side] is None:
                    item = next(frames, None)
                    if item is None:
                        self.ended = side
                        return
                    if isinstance(item, Break):
                        yield item
                    else:
                        held[side] = item
            a, b = held
            assert a is not None
            assert b is not None
            places = a.number // self._steps[0], b.number // self._steps[1]
            if places[0] == places[1]:
                yield a.picture, b.picture
            held = [None if place == min(places) else item for place, item in zip(places, held, strict=True)]


@contextmanager
def _opened(video: str | Path) -> Iterator[FrameReader]:
    """`open_frames`, whose error names the file as the user has."""
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_frames(video))
        except UndecodableVideo as error:
            raise _naming(video, error) from error
        yield reader


def _frames(
    video: str | Path, reader: FrameReader, step: int, take: Callable[[NDArray[np.uint8]], Tensor]
) -> Iterator[NumberedFrame[Tensor] | Break]:
    """The reader's frames; an error on the way names the file as the user has."""
    try:
        yield from reader.frames(step, take)
    except UndecodableVideo as error:
        raise _naming(video, error) from error


def _naming(video: str | Path, error: UndecodableVideo) -> ValueError:
    """The error with the path of the file in the place of its name: two files may have one name."""
    return ValueError(f"{video}: {str(error).removeprefix(f'{video}: ').removeprefix(f'{Path(video).name}: ')}")


def _remedy(step: int) -> str:
    """What a user can do about a video that is too short."""
    return "; a smaller --interval samples more frames" if step > 1 else "; name a longer video"


def _square_frames(video: str | Path, reader: FrameReader, step: int, size: int) -> Iterator[Tensor | Break]:
    """Every `step`-th frame as [3, S, S] in [0, 1], and the breaks between them."""
    for frame in _frames(video, reader, step, square_of(size)):
        yield frame if isinstance(frame, Break) else frame.picture
