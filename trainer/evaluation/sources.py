"""Sources of the windows that are measured: a shard dataset, video files, or raw MCL-JCV .yuv files.

A window is T consecutive sampled frames. Windows do not overlap. The frames that are left at the end of a video are
counted and reported, and not padded, because a repeated frame would be measured as if it were real. (The official
script repeats the last frame.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from data_pipeline.cut.frames import Break, break_text, open_frames
from data_pipeline.read.config import DataConfig
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.read.two_tries import TooManyBadSamples
from data_pipeline.source.folder import videos_of_folder
from data_pipeline.source.names import VIDEO_SUFFIXES
from data_pipeline.store.counted import counted
from data_pipeline.store.text import read_lines

_PAPER_RATE = 25.0  # frames a second at which the paper measures
_NAMED = 3  # stretches of a video that the reason names


@dataclass
class Window:
    """One window to reconstruct and measure."""

    video: Tensor  # [3, T, S, S] in [0, 1]
    source: str  # name of the video or clip
    start: int  # number of its first frame among the frames that the source shows
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


def square_of(size: int) -> Callable[[NDArray[np.uint8]], Tensor]:
    """What makes of a frame, uint8 [H, W, 3], the centre square [3, size, size] in [0, 1] that a model sees."""

    def take(pixels: NDArray[np.uint8]) -> Tensor:
        return resize_and_crop(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, size)

    return take


@dataclass(frozen=True)
class FoundVideos:
    """Videos to measure, as (name, path), and what was found beside them.

    Attributes:
        items: name relative to the folder, and path.
        failed: names that cannot be used, and why.
        remark: of the files that are no videos, in words; "" without such files.
    """

    items: Sequence[tuple[str, Path]]
    failed: Sequence[tuple[str, str]] = ()
    remark: str = ""

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def find_videos(root: str | Path, listing: str | Path | None = None) -> FoundVideos:
    """Videos below a folder, sorted by name, as a build finds them; or one file; or those a list file names.

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
        return FoundVideos([(root.name, root)])
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
        return FoundVideos([(name, root / name) for name in names])
    videos, unusable, left_out = videos_of_folder(root)
    if not left_out.videos:
        raise ValueError(f"--source {root} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return FoundVideos(
        [(name, root / name) for name in videos],
        [(str(root), why) for why in unusable],
        left_out.line(str(root)) if left_out.unknown or left_out.hidden or left_out.unreadable else "",
    )


class VideoFiles:
    """Windows of video files at their native rate."""

    def __init__(
        self,
        videos: FoundVideos,
        frames: int,
        size: int,
        interval: int | None = None,
        max_windows: int | None = None,
    ) -> None:
        """
        Args:
            videos: as `find_videos` finds them.
            frames: T, frames a window.
            size: side in pixels of the square to which a window is cut.
            interval: use every interval-th frame; None: `sampling_interval` of the video's frame rate.
            max_windows: at most so many windows of each video.
        """
        self._videos = videos
        self._frames, self._size = frames, size
        self._interval, self._max_windows = interval, max_windows
        self.totals = Totals()

    def describe(self) -> str:
        """The source in one line."""
        rate = "native rate, interval round(fps/25)" if self._interval is None else f"every {self._interval}. frame"
        return f"{counted(len(self._videos), 'video')}, {self._frames}-frame windows, {rate}, {self._size}x{self._size}"

    def windows(self) -> Iterator[Window]:
        """Windows, one video after the other. `totals` names each video that cannot be read, or not all of it."""
        found = self._videos
        self.totals = Totals(failed=list(found.failed), remarks=[found.remark] if found.remark else [])
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
        gaps: list[str] = []
        start = made = 0
        try:
            with open_frames(path) as reader:
                interval = self._interval or sampling_interval(float(reader.fps))
                for frame in reader.frames(interval, square_of(self._size)):
                    if isinstance(frame, Break):  # no window reaches across frames that are missing
                        gaps.append(break_text(frame))
                        self.totals.left_out_frames += len(held)
                        held = []
                        continue
                    start = start if held else frame.number
                    held.append(frame.picture)
                    if len(held) == self._frames:
                        video = torch.stack(held, dim=1)
                        yield Window(video, name, start, interval, float(reader.fps / Fraction(interval)))
                        held = []
                        made += 1
                        if made == self._max_windows:
                            break
        except ValueError as error:
            gaps.append(str(error))
        if gaps:
            more = f"; and {counted(len(gaps) - _NAMED, 'other stretch', 'other stretches')}"
            self.totals.failed.append((name, "; ".join(gaps[:_NAMED]) + (more if len(gaps) > _NAMED else "")))
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
