"""Which samples of a dataset a configuration can read, and for which reasons the others are left out.

Memory holds one number for each eligible sample and a few for each shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.index_check import REMEDY
from data_pipeline.read.config import DataConfig, LatentDataConfig, ReadingConfig
from data_pipeline.read.sample_table import SampleTable
from data_pipeline.store.counted import counted

_SAMPLES = {
    "other split": ("sample of another split", "samples of other splits"),
    "too few frames": ("sample with too few frames", "samples with too few frames"),
    "too small": ("sample with too small frames", "samples with too small frames"),
    "mirrored": ("mirrored sample", "mirrored samples"),
}
"""Reason for which samples are left out -> the words for one of them and for several."""

Unfit: TypeAlias = Callable[[list[npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]]
"""Columns of the index -> for each reason, which rows it leaves out. A row is counted under its first reason."""


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


def select_clips(table: SampleTable, config: DataConfig) -> Selection:
    """The clips that a configuration can read.

    Raises:
        ValueError: no clip can be read.
    """
    side = 0 if config.resize else config.image_size

    def unfit(columns: list[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        frames, height, width = columns
        return {"too few frames": frames < config.frame_span, "too small": np.minimum(height, width) < side}

    selection = _select(table, config.split, ("frames", "height", "width"), unfit)
    left, head = selection.left_out, _head(table, config)
    if len(selection.rows):
        return selection
    if left.get("too few frames"):
        raise ValueError(
            f"{head}: {left['too few frames']} of split {config.split!r} have fewer than the "
            f"{config.frame_span} frames that data.frames={config.frames} with data.frame_stride={config.frame_stride} "
            "need; lower one of them, or build longer clips"
        )
    if left.get("too small"):
        raise ValueError(
            f"{head}: {left['too small']} are smaller than data.image_size={config.image_size}; lower it, or set "
            f"data.resize={config.image_size} to scale them"
        )
    raise ValueError(f"{head}: {_no_such_split(table, config)}")


def select_latents(table: SampleTable, config: LatentDataConfig) -> Selection:
    """The latents that a configuration can read.

    Raises:
        ValueError: no sample can be read.
    """

    def unfit(columns: list[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        (mirrored,) = columns
        return {"mirrored": mirrored & (not config.mirrored)}

    selection = _select(table, config.split, ("mirrored",), unfit)
    if len(selection.rows):
        return selection
    if left := selection.left_out.get("mirrored"):
        raise ValueError(
            f"{_head(table, config)}: all {left} of split {config.split!r} are mirrored; set data.mirrored=true"
        )
    raise ValueError(f"{_head(table, config)}: {_no_such_split(table, config)}")


def _select(table: SampleTable, split: str, columns: Sequence[str], unfit: Unfit) -> Selection:
    rows: list[npt.NDArray[np.int64]] = []
    counts = np.zeros(table.shards, dtype=np.int64)
    reasons = dict.fromkeys(_SAMPLES, 0)
    last_shard = -1
    for start, keep, (shard, *others) in table.of_split(split, "shard", *columns):
        if len(shard) and (shard[0] < last_shard or np.any(np.diff(shard) < 0) or shard[-1] >= table.shards):
            raise ValueError(f"{table.path} is not in order of its shards; {REMEDY}")
        reasons["other split"] += int((~keep).sum())
        for reason, mask in unfit(others).items():
            reasons[reason] += int((keep & mask).sum())
            keep = keep & ~mask
        rows.append(np.flatnonzero(keep) + start)
        counts += np.bincount(shard[keep], minlength=table.shards)
        last_shard = int(shard[-1]) if len(shard) else last_shard
    chosen = np.concatenate(rows) if rows else np.empty(0, np.int64)
    kind = np.int32 if len(table) < 2**31 else np.int64
    return Selection(chosen.astype(kind), counts, {reason: count for reason, count in reasons.items() if count})


def _head(table: SampleTable, config: ReadingConfig) -> str:
    return f"data.shards={config.shards}: none of its {len(table)} samples can be read"


def _no_such_split(table: SampleTable, config: ReadingConfig) -> str:
    splits = sorted({str(name) for _, (split,) in table.columns("split") for name in np.unique(split)})
    return f"no sample has data.split={config.split!r}; the dataset has {', '.join(splits) or 'no samples'}"


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


def check_lanes(config: ReadingConfig, samples: int) -> None:
    """Refuse fewer samples than lanes where `data.lanes` was left at 0; lanes that were set are refused by the order.

    Args:
        samples: there are to read, at least 1.
    Raises:
        ValueError: with the most lanes that fit.
    """
    batch = config.global_batch
    if config.lanes == 0 and samples < batch:
        most = max(lanes for lanes in range(1, samples + 1) if batch % lanes == 0)
        raise ValueError(
            f"data.global_batch={batch} is more than the {counted(samples, 'sample there is', 'samples there are')} to "
            f"read, and data.lanes=0 reads a sample of a batch in each lane; set data.lanes={most} or a smaller "
            "data.global_batch, or read a dataset with more samples"
        )
