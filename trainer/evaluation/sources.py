"""Sources of the windows that are measured: a shard dataset, video files, or raw MCL-JCV .yuv files.

A window is T consecutive sampled frames. Windows do not overlap. The frames that are left at the end of a video are
counted and reported, and not padded, because a repeated frame would be measured as if it were real. (The official
script repeats the last frame.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data_pipeline.read.config import DataConfig
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.read.two_tries import TooManyBadSamples
from data_pipeline.source.names import MEASURED_SUFFIXES
from data_pipeline.store.counted import counted
from data_pipeline.store.text import read_lines
from trainer.evaluation.frames import open_frames

_PAPER_RATE = 25.0  # frames a second at which the paper measures


@dataclass
class Window:
    """One window to reconstruct and measure."""

    video: Tensor  # [3, T, S, S] in [0, 1]
    source: str  # name of the video or clip
    start: int  # number of its first frame among the decoded frames of the source
    interval: int  # source frames from one window frame to the next
    fps: float  # frames a second of the window itself


@dataclass
class Totals:
    """What was read and what was left out. It is filled while windows are drawn."""

    sources: int = 0  # videos or clips that gave a window
    windows: int = 0
    left_out_frames: int = 0  # sampled frames behind the last whole window of each source
    failed: list[tuple[str, str]] = field(default_factory=list)  # source, reason
    remarks: list[str] = field(default_factory=list)  # what else a reader of the results should know


class WindowSource(Protocol):
    """Yields windows. `totals` is complete when the iterator is exhausted."""

    totals: Totals

    def describe(self) -> str:
        """The source in one line, for the result table."""
        ...

    def windows(self) -> Iterator[Window]:
        """All windows, in a fixed order."""
        ...


def resize_and_crop(frame: Tensor, size: int) -> Tensor:
    """Bring the short side to `size` (bilinear, antialiased) and cut the centre square, as the official code does.

    Args:
        frame: [..., 3, H, W] floats.
    Returns:
        [..., 3, size, size].
    """
    height, width = frame.shape[-2:]
    if height <= width:
        target = (size, max(size, int(size * width / height)))
    else:
        target = (max(size, int(size * height / width)), size)
    if target != (height, width):
        flat = frame.reshape(-1, *frame.shape[-3:])
        resized = interpolate(flat, target, mode="bilinear", align_corners=False, antialias=True)
        frame = resized.reshape(*frame.shape[:-2], *target)
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return frame[..., top : top + size, left : left + size]


def sampling_interval(fps: float) -> int:
    """n, if every n-th frame is used: round(fps / 25), at least 1. So the rate stays near the paper's 25 fps."""
    return max(1, round(fps / _PAPER_RATE))


def find_videos(root: str | Path, listing: str | Path | None = None) -> list[tuple[str, Path]]:
    """Videos below a folder as (name relative to it, path), sorted; or one file; or those a list file names.

    Args:
        root: folder or single video.
        listing: text file with one path relative to `root` a line; what follows the first blank is ignored, so that
            UCF-101's `trainlist01.txt` (path and class number) and `testlist01.txt` work as they are.
    Raises:
        ValueError: the path holds no video or is a dataset of shards, or a listed file does not exist.
    """
    if "://" in str(root):
        raise ValueError(f"--source {root} must be a local file or folder; a dataset of shards is given as --shards")
    root = Path(root)
    if root.is_file():
        if listing is not None:
            raise ValueError(f"--list {listing} chooses among the videos of a folder, and --source {root} is a file")
        return [(root.name, root)]
    if not root.is_dir():
        raise ValueError(f"--source {root} does not exist")
    if (root / "dataset.json").is_file():
        raise ValueError(f"--source {root} is a dataset of shards; give it as --shards {root}")
    if listing is not None:
        names = [line.split()[0] for line in read_lines(Path(listing)) if line.strip()]
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise ValueError(
                f"{listing} names {missing[0]!r}, which is not below {root} ({len(missing)} missing in all)"
            )
        return [(name, root / name) for name in names]
    videos = sorted(path for path in root.rglob("*") if path.suffix.lower() in MEASURED_SUFFIXES and path.is_file())
    if not videos:
        raise ValueError(f"--source {root} holds no video ({', '.join(sorted(MEASURED_SUFFIXES))})")
    return [(str(path.relative_to(root)), path) for path in videos]


class VideoFiles:
    """Windows of video files at their native rate."""

    def __init__(
        self,
        videos: Iterable[tuple[str, Path]],
        frames: int,
        size: int,
        interval: int | None = None,
        max_windows: int | None = None,
    ) -> None:
        """
        Args:
            videos: (name, path).
            frames: T, frames a window.
            size: side in pixels of the square to which a window is cut.
            interval: use every interval-th frame; None: `sampling_interval` of the video's frame rate.
            max_windows: at most so many windows of each video.
        """
        self._videos = list(videos)
        self._frames, self._size = frames, size
        self._interval, self._max_windows = interval, max_windows
        self.totals = Totals()

    def describe(self) -> str:
        """The source in one line."""
        rate = "native rate, interval round(fps/25)" if self._interval is None else f"every {self._interval}. frame"
        return f"{counted(len(self._videos), 'video')}, {self._frames}-frame windows, {rate}, {self._size}x{self._size}"

    def windows(self) -> Iterator[Window]:
        """Windows, one video after the other. `totals` names the videos that cannot be read to their end."""
        self.totals = Totals()
        for name, path in self._videos:
            count = 0
            for window in self._windows_of(name, path):
                count += 1
                self.totals.sources += count == 1
                self.totals.windows += 1
                yield window
            if not count and not any(failed == name for failed, _ in self.totals.failed):
                self.totals.failed.append((name, f"shorter than one window of {self._frames} sampled frames"))

    def _windows_of(self, name: str, path: Path) -> Iterator[Window]:
        held: list[Tensor] = []
        start = made = 0
        try:
            with open_frames(path) as reader:
                interval = self._interval or sampling_interval(float(reader.fps))
                for number, frame in enumerate(reader):
                    if number % interval:
                        continue
                    if not held:
                        start = number
                    pixels = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
                    held.append(resize_and_crop(pixels, self._size))
                    if len(held) == self._frames:
                        video = torch.stack(held, dim=1)
                        yield Window(video, name, start, interval, float(reader.fps / Fraction(interval)))
                        held = []
                        made += 1
                        if made == self._max_windows:
                            return
        except ValueError as error:
            self.totals.failed.append((name, str(error)))
        self.totals.left_out_frames += len(held)


class ShardSource:
    """Windows of one split of a shard dataset, as stored: 8 frames a second, side by side, centre crop."""

    def __init__(
        self, shards: str, split: str, frames: int, size: int, resize: int = 0, max_windows: int | None = None
    ) -> None:
        """
        Args:
            shards: a dataset of launch/build_shards.py, a folder or s3://bucket/prefix.
            split: train, val or test.
            frames, size: T and S of a window.
            resize: scale the stored short side to so many pixels before cropping; 0 crops stored pixels, as training.
            max_windows: at most so many windows in all, spread evenly over the split.
        Raises:
            ValueError: `shards` is no dataset, or no clip of that split is long and large enough.
        """
        self._shards, self._split = shards, split
        if 0 < resize < size:
            raise ValueError(f"--resize {resize} is smaller than the model's {size} pixels; use {size} or more, or 0")
        config = DataConfig(shards=shards, split=split, frames=frames, image_size=size, resize=resize, workers=0)
        try:
            self._sweep = iterate_clips(config, split, windows="all", batch_size=4, limit=max_windows)
        except ValueError as error:
            raise ValueError(f"--shards {shards} --split {split}: {error}") from error
        self._fps = float(self._sweep.files.dataset.fps)
        lengths = np.concatenate([column for _, (column,) in self._sweep.table.columns("frames")])
        self._left_out = int((lengths[self._sweep.selection.rows] % frames).sum())
        self.totals = Totals()

    def describe(self) -> str:
        """The source in one line."""
        windows = counted(self._sweep.total, "window")
        return f"{self._shards}, split {self._split}: {windows} at {self._fps:g} frames a second"

    def windows(self) -> Iterator[Window]:
        """Windows in the order of the index. `totals` names the unreadable clips."""
        self.totals = Totals(left_out_frames=self._left_out, remarks=[self._sweep.selection.describe()])
        seen: set[str] = set()
        try:
            for clips in self._sweep:
                for video, key, start in zip(clips.video, clips.keys, clips.starts, strict=True):
                    seen.add(key)
                    self.totals.windows += 1
                    self.totals.sources = len(seen)
                    yield Window(video.float() / 255, key, start, 1, self._fps)
        except TooManyBadSamples as error:
            raise ValueError(str(error)) from error
        finally:
            self.totals.failed += [(bad.key, bad.error) for bad in self._sweep.bad_samples]
