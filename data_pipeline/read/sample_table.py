"""The samples of a dataset and the place of each in the shards, from the memory-mapped index.arrow.

The index of ten million samples stays on disk. Memory holds one number for each eligible sample and a few for each
shard.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.read.config import DataConfig
from data_pipeline.store.counted import counted

log = logging.getLogger(__name__)

_SAMPLES = {
    "other split": ("sample of another split", "samples of other splits"),
    "too few frames": ("sample with too few frames", "samples with too few frames"),
    "too small": ("sample with too small frames", "samples with too small frames"),
}
"""Reason for which samples are left out -> the words for one of them and for several."""


@dataclass(frozen=True)
class Sample:
    """One row of index.arrow."""

    row: int
    key: str
    shard: int
    offset: int
    size: int
    video_offset: int
    video_size: int
    frames: int
    height: int
    width: int
    source: str
    label: str


class SampleTable:
    """Random access to the rows of index.arrow.

    Args:
        path: local index.arrow.
        shards: number of shards in dataset.json.
    """

    def __init__(self, path: Path, shards: int) -> None:
        self.path = path
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path} is not a readable Arrow index ({error}); rebuild the shards") from error
        self._shards = shards
        sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        self._starts = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._batch = lru_cache(maxsize=64)(self._reader.get_batch)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Sample:
        number = bisect_right(self._starts, row) - 1
        batch = self._batch(number)
        inside = row - self._starts[number]
        return Sample(row=row, **{name: batch.column(name)[inside].as_py() for name in _FIELDS})

    def columns(self, *names: str) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
        """(first row, the named columns) of one record batch after another."""
        for number, start in enumerate(self._starts[:-1]):
            batch = self._reader.get_batch(number)
            yield start, [batch.column(name).to_numpy(zero_copy_only=False) for name in names]

    def _eligibility(self, split: str) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
        """(first row, [shard, whether in the split, frames, height, width]) of one record batch after another."""
        for number, start in enumerate(self._starts[:-1]):
            batch = self._reader.get_batch(number)
            # Arrow compares, because with strings of Python this would take minutes for ten million rows.
            of_split = pc.equal(batch.column("split"), split)
            arrays = [batch.column("shard"), of_split, *(batch.column(name) for name in ("frames", "height", "width"))]
            yield start, [array.to_numpy(zero_copy_only=False) for array in arrays]

    def select(self, config: DataConfig) -> Selection:
        """The samples that a configuration can read, and the reasons for which the others are left out.

        Raises:
            ValueError: no sample can be read.
        """
        rows: list[npt.NDArray[np.int64]] = []
        counts = np.zeros(self._shards, dtype=np.int64)
        reasons = dict.fromkeys(_SAMPLES, 0)
        side = 0 if config.resize else config.image_size
        last_shard = -1
        for start, (shard, of_split, frames, height, width) in self._eligibility(config.split):
            if len(shard) and (shard[0] < last_shard or np.any(np.diff(shard) < 0) or shard[-1] >= self._shards):
                raise ValueError(f"{self.path} is not in order of its shards; rebuild the shards")
            long = frames >= config.frame_span
            large = np.minimum(height, width) >= side
            reasons["other split"] += int((~of_split).sum())
            reasons["too few frames"] += int((of_split & ~long).sum())
            reasons["too small"] += int((of_split & long & ~large).sum())
            keep = of_split & long & large
            rows.append(np.flatnonzero(keep) + start)
            counts += np.bincount(shard[keep], minlength=self._shards)
            last_shard = int(shard[-1]) if len(shard) else last_shard
        chosen = np.concatenate(rows) if rows else np.empty(0, np.int64)
        kind = np.int32 if len(self) < 2**31 else np.int64
        selection = Selection(chosen.astype(kind), counts, {k: n for k, n in reasons.items() if n})
        if not len(chosen):
            raise ValueError(_nothing_left(config, self, selection))
        return selection


@dataclass(frozen=True)
class Selection:
    """The samples of a dataset that a configuration can read.

    Attributes:
        rows: their rows in index.arrow, ascending, [N].
        counts: how many of them each shard holds, [shards].
        left_out: reason, a key of `_SAMPLES` -> number of samples.
    """

    rows: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    left_out: dict[str, int]

    def describe(self) -> str:
        """How many samples in how many shards, and how many are left out for each reason; part of a line."""
        left = ", ".join(counted(count, *_SAMPLES[reason]) for reason, count in self.left_out.items()) or "none"
        shards = counted(int(np.count_nonzero(self.counts)), "shard")
        return f"{counted(len(self.rows), 'sample')} in {shards}; left out: {left}"


def _nothing_left(config: DataConfig, table: SampleTable, selection: Selection) -> str:
    left = selection.left_out
    head = f"data.shards={config.shards}: none of its {len(table)} samples can be read"
    if left.get("too few frames"):
        return (
            f"{head}: {left['too few frames']} of split {config.split!r} have fewer than the "
            f"{config.frame_span} frames that data.frames={config.frames} with data.frame_stride={config.frame_stride} "
            "need; lower one of them, or build longer clips"
        )
    if left.get("too small"):
        return (
            f"{head}: {left['too small']} are smaller than data.image_size={config.image_size}; lower it, or set "
            f"data.resize={config.image_size} to scale them"
        )
    splits = sorted({str(name) for _, (split,) in table.columns("split") for name in np.unique(split)})
    return f"{head}: no sample has data.split={config.split!r}; the dataset has {', '.join(splits) or 'no samples'}"


_FIELDS = tuple(name for name in Sample.__dataclass_fields__ if name != "row")


def check_size(dataset: DatasetFile, config: DataConfig) -> None:
    """Refuse a crop that is larger than the stored frames.

    Raises:
        ValueError: data.image_size is larger, and data.resize does not enlarge the frames.
    """
    if not config.resize and config.image_size > dataset.short_side:
        raise ValueError(
            f"data.image_size={config.image_size} is more than the {dataset.short_side} pixels of the stored short "
            f"side; set data.resize={config.image_size} to enlarge the frames, or build shards with a larger short side"
        )
