"""Reads a split once, in the order of the index, with fixed windows and centre crops: for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_pipeline.read.clip_decoder import DecodesViews, ViewDecoder
from data_pipeline.read.config import DataConfig
from data_pipeline.read.sample_reader import SampleReader, centre_view
from data_pipeline.read.sample_table import SampleTable
from data_pipeline.read.selection import check_size, select_clips
from data_pipeline.read.shard_files import ShardFiles
from data_pipeline.read.two_tries import BadSample, TooManyBadSamples, UnreadableSample
from data_pipeline.read.worker_pool import WorkerPool

WINDOWS = ("centre", "first", "all", "drawn")


@dataclass(kw_only=True)
class Clips:
    """Some windows of a split, in order. A window that could not be read is left out and listed in `bad`."""

    video: Tensor  # uint8 [b, 3, T, S, S], RGB, contiguous
    captions: list[str]
    labels: list[str]
    keys: list[str]
    indices: Tensor  # int64 [b], rows of index.arrow
    starts: list[int]  # first stored frame of each window
    bad: list[BadSample] = field(default_factory=list)


class ClipSweep:
    """The windows of one rank, which can be iterated any number of times. `iterate_clips` makes one.

    Attributes:
        total: windows of all ranks together.
        bad_samples: every distinct sample that could not be read so far.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        *,
        rank: int,
        world_size: int,
        windows: str,
        batch_size: int,
        limit: int | None,
        decoder: Callable[[Fraction], DecodesViews],
    ) -> None:
        if windows not in WINDOWS:
            raise ValueError(f"windows={windows!r} is not one of {', '.join(WINDOWS)}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        self.config = replace(config, split=split)
        self.files = ShardFiles(self.config)
        check_size(self.files.dataset, self.config)
        self.table = SampleTable(self.files.index_path(), len(self.files.dataset.shards))
        self.selection = select_clips(self.table, self.config)
        self._rows, self._starts = self._windows(windows)
        self.total = len(self._rows)
        if limit is not None and limit < self.total:
            # evenly over the split, the same for any number of ranks
            spread = np.arange(limit) if windows == "drawn" else np.arange(limit) * self.total // limit
            self._rows, self._starts, self.total = self._rows[spread], self._starts[spread], limit
        self._windows_of_rank = range(rank * self.total // world_size, (rank + 1) * self.total // world_size)
        self._batch_size = batch_size
        self._reader = SampleReader(self.files, decoder(self.files.dataset.fps))
        self._bad: dict[int, BadSample] = {}

    def describe(self) -> str:
        """One line: how many samples of the split are read, and how many are left out and why."""
        return f"{self.config.shards}, split {self.config.split}: {self.selection.describe()}"

    def __len__(self) -> int:
        """Number of windows of this rank."""
        return len(self._windows_of_rank)

    @property
    def bad_samples(self) -> list[BadSample]:
        return list(self._bad.values())

    def __iter__(self) -> Iterator[Clips]:
        pool = WorkerPool(
            self.read_clips,
            self.firsts(len(self)),
            workers=self.config.workers,
            prefetch=self.config.prefetch,
            timeout_s=self.config.timeout_s,
            pin_memory=False,
            on_start=self.files.after_fork,
        )
        try:
            for clips in pool:
                self._bad.update((bad.row, bad) for bad in clips.bad)
                if len(self._bad) > self.config.max_bad_samples:
                    raise TooManyBadSamples.listing(self.config, self.bad_samples)
                yield clips
        finally:
            pool.close()

    def firsts(self, count: int) -> range:
        """Numbers for `read_clips` of the batches that hold this rank's first `count` windows."""
        return self._windows_of_rank[: max(count, 0) : self._batch_size]

    def positions(self, numbers: range) -> list[tuple[int, int]]:
        """The row in index.arrow and the first stored frame of each of the windows with these numbers."""
        rows, starts = self._rows[numbers.start : numbers.stop], self._starts[numbers.start : numbers.stop]
        return list(zip(rows.tolist(), starts.tolist(), strict=True))

    def read_clips(self, first: int) -> Clips:
        """The windows numbered from `first` on, at most `batch_size` of them."""
        config = self.config
        numbers = range(first, min(first + self._batch_size, self._windows_of_rank.stop))
        video = torch.empty(len(numbers), 3, config.frames, config.image_size, config.image_size, dtype=torch.uint8)
        clips = Clips(video=video, captions=[], labels=[], keys=[], indices=torch.empty(0), starts=[])
        rows: list[int] = []
        for number in numbers:
            sample, start = self.table[int(self._rows[number])], int(self._starts[number])
            try:
                view = centre_view(config, sample, start)
                caption = self._reader.read(sample, view, video[len(rows)].numpy())
            except UnreadableSample as error:
                clips.bad.append(error.bad)
                continue
            rows.append(sample.row)
            clips.captions.append(caption)
            clips.labels.append(sample.label)
            clips.keys.append(sample.key)
            clips.starts.append(start)
        clips.video, clips.indices = video[: len(rows)], torch.tensor(rows, dtype=torch.int64)
        return clips

    def _windows(self, windows: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row and first frame of every window, in order."""
        frames = np.concatenate([column for _, (column,) in self.table.columns("frames")])
        rows = self.selection.rows.astype(np.int64)
        lengths = frames[rows].astype(np.int64)
        span = self.config.frame_span
        if windows == "first":
            return rows, np.zeros_like(rows)
        if windows == "centre":
            return rows, (lengths - span) // 2
        if windows == "drawn":
            return rows, np.random.default_rng(self.config.seed).integers(0, lengths - span + 1)
        counts = lengths // span
        first = np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(rows, counts), (np.arange(counts.sum()) - first) * span


def iterate_clips(
    config: DataConfig,
    split: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    windows: str = "centre",
    batch_size: int = 1,
    limit: int | None = None,
    decoder: Callable[[Fraction], DecodesViews] = ViewDecoder,
) -> ClipSweep:
    """Every sample of a split once, in the order of the index, the same pixels each time.

    Args:
        config: where and in which shape; of its split, order and augmentation settings only `seed` is used, for windows
            that are drawn.
        split: train, val or test.
        rank, world_size: each rank gets one contiguous part; the parts together are the split.
        windows: "centre" takes one window in the middle of each clip, "first" one from its start, "drawn" one at a
            random place that `config.seed` decides, "all" as many as fit side by side.
        batch_size: windows read together; the last ones of a rank may be fewer.
        limit: only this many windows, spread evenly over the split; where they are drawn, the first ones.
        decoder: makes the decoder of the clips from their frames a second.
    Returns:
        An iterable of `Clips` with its own `bad_samples`.
    Raises:
        ValueError: data.shards holds no dataset, or no sample of that split that can be read in this shape.
        TooManyBadSamples: while iterating, past data.max_bad_samples.
    """
    return ClipSweep(
        config,
        split,
        rank=rank,
        world_size=world_size,
        windows=windows,
        batch_size=batch_size,
        limit=limit,
        decoder=decoder,
    )
