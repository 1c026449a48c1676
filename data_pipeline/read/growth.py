"""A dataset that grows by append: each epoch has the shards that there were when it began.

`launch/build_shards.py --append` adds shards behind those that are there. A *snapshot* is a number of shards with the
first epoch that reads them; an epoch's order is that of `order.py` for the shards of its snapshot. All epochs have the
same lanes, so a global batch that straddles two epochs of different length is laid as any other one.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset.records import ShardEntry
from data_pipeline.read.order import EpochOrder, Int64Array
from data_pipeline.read.selection import Selection


@dataclass(frozen=True)
class Snapshot:
    """The first shards of a dataset, and the epoch from which on they are what is read.

    Attributes:
        epoch: the first one with these shards.
        shards: how many of the dataset's shards there were.
        content: SHA-256 over names, sizes and digests of these shards.
        eligible: SHA-256 over the rows of index.arrow that are read of them.
    """

    epoch: int
    shards: int
    content: str
    eligible: str

    @staticmethod
    def take(epoch: int, shards: Sequence[ShardEntry], selection: Selection) -> Snapshot:
        """The snapshot of these shards, the dataset's first ones."""
        listed = "".join(f"{shard.name}\n{shard.bytes}\n{shard.sha256}\n" for shard in shards)
        rows = selection.rows[: int(selection.counts[: len(shards)].sum())]
        content = hashlib.sha256(listed.encode()).hexdigest()
        return Snapshot(epoch, len(shards), content, hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest())


def taken_up(
    saved: Mapping[str, Any], now: Mapping[str, Any], take: Callable[[int, int | None], Snapshot], next_epoch: int
) -> list[Snapshot]:
    """The snapshots of a run that goes on, with the shards that were added since.

    Args:
        saved, now: the identities of the loader that the run had, and of the present one.
        take: the present snapshot of the first shards, or of all, to be read from an epoch on.
        next_epoch: the first epoch that had not begun.
    Raises:
        ValueError: the shards of the saved run are not the first ones of the dataset, or others of their samples are
            read.
    """
    snapshots = [Snapshot(**snapshot) for snapshot in saved["snapshots"]]
    for then in snapshots:
        today = take(then.epoch, then.shards)
        if today.content != then.content:
            raise ValueError("another index")
        if today.eligible != then.eligible:
            raise ValueError("other samples")
    if saved["index"] == now["index"]:
        return snapshots
    grown = take(next_epoch, None)
    if grown.shards == snapshots[-1].shards:
        raise ValueError("another index")
    return [snapshot for snapshot in snapshots if snapshot.epoch < next_epoch] + [grown]


class GrowingOrder:
    """The orders of all epochs, and where each epoch lies in the endless sequence of samples.

    Args:
        orders: (first epoch, order from that epoch on), ascending, the first of epoch 0; all with the same lanes.
    """

    def __init__(self, orders: Sequence[tuple[int, EpochOrder]]) -> None:
        self._epochs = [epoch for epoch, _ in orders]
        self._orders = [order for _, order in orders]
        assert self._epochs[0] == 0
        assert np.all(np.diff(self._epochs) > 0)
        lengths = np.array([order.epoch_samples for order in self._orders], dtype=np.int64)
        ends = np.cumsum(np.diff(self._epochs) * lengths[:-1])
        self._lengths, self._starts = lengths, np.concatenate([[0], ends]).astype(np.int64)

    def at(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return self._orders[bisect_right(self._epochs, epoch) - 1]

    def start(self, epoch: int) -> int:
        """The number of the epoch's first sample in the endless sequence."""
        part = bisect_right(self._epochs, epoch) - 1
        return int(self._starts[part] + (epoch - self._epochs[part]) * self._lengths[part])

    def locate(self, samples: int | npt.ArrayLike) -> tuple[Int64Array, Int64Array]:
        """The epochs of samples of the endless sequence, and their positions in these; the shape of `samples`."""
        numbers = np.asarray(samples, dtype=np.int64)
        part = np.searchsorted(self._starts, numbers, side="right") - 1
        epochs, positions = np.divmod(numbers - self._starts[part], self._lengths[part])
        return epochs + np.take(self._epochs, part), positions
