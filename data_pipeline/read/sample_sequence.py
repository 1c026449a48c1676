"""The endless sequence of samples that all ranks read together: the eligible samples, in the order of every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.read.batches import Position
from data_pipeline.read.config import ReadingConfig
from data_pipeline.read.growth import GrowingOrder, Snapshot, taken_up
from data_pipeline.read.order import EpochOrder, Int64Array
from data_pipeline.read.selection import Selection
from data_pipeline.store.counted import counted


class SampleSequence:
    """Says which sample comes when. A new sequence has the shards of today in every epoch.

    Args:
        config: seed, lanes and shuffle window.
        dataset: what is read.
        selection: which of its samples are eligible.
        selected_by: the settings that decide that, for messages.

    Attributes:
        orders: the order of every epoch.
    """

    def __init__(self, config: ReadingConfig, dataset: DatasetFile, selection: Selection, selected_by: str) -> None:
        self.config, self.dataset, self.selection, self.selected_by = config, dataset, selection, selected_by
        self._snapshots: Sequence[Snapshot] = [self._snapshot(0)]
        self.orders = self.fresh_orders()

    def __len__(self) -> int:
        """E, the samples of an epoch over all ranks: lanes x (eligible samples // lanes), of all shards there are."""
        return self.orders.at(self._snapshots[-1].epoch).epoch_samples

    def fresh_orders(self) -> GrowingOrder:
        """The same as `orders`, with caches of its own, so that another thread can use it."""
        config, counts = self.config, self.selection.counts
        return GrowingOrder(
            [
                (of.epoch, EpochOrder(counts[: of.shards], config.lane_count, config.shuffle_window, config.seed))
                for of in self._snapshots
            ]
        )

    def rows(self, epochs: Int64Array, positions: Int64Array) -> npt.NDArray[Any]:
        """Rows of index.arrow at positions of epochs; the shape of both."""
        rows = np.empty(len(epochs), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            rows[of_epoch] = self.selection.rows[self.orders.at(epoch).sample_at(epoch, positions[of_epoch])]
        return rows

    def number(self, position: Position, granularity: int) -> int:
        """The number in the sequence of the first sample behind a position.

        Args:
            granularity: samples; batches begin at multiples of this number.
        Raises:
            ValueError: no batch begins at this position.
        """
        length = self.orders.at(position.epoch).epoch_samples if position.epoch >= 0 else 0
        if position.epoch < 0 or not 0 <= position.consumed <= length:
            raise ValueError(f"{position} lies outside an epoch of {length} samples; was it saved with other data?")
        if position.consumed % granularity:
            raise ValueError(
                f"{position} is not a multiple of {granularity}, where batches begin; use the data.lanes and "
                "data.global_batch of the run that saved it, or a data.global_batch that data.lanes divides"
            )
        return self.orders.start(position.epoch) + position.consumed

    @property
    def identity(self) -> dict[str, Any]:
        """The settings and samples that give a position its meaning.

        A checkpoint saves them with the position, and `continue_from` compares them when a run resumes.
        """
        return {
            "seed": self.config.seed,
            "lanes": self.config.lane_count,
            "shuffle_window": self.config.shuffle_window,
            "index": self.dataset.digest,
            "snapshots": [asdict(snapshot) for snapshot in self._snapshots],
        }

    def continue_from(self, saved: Mapping[str, Any], position: Position) -> str:
        """Become the sequence that a position was saved with; see `SampleLoader.continue_from`."""
        for key in ("seed", "lanes", "shuffle_window"):
            if saved.get(key) != (value := self.identity[key]):
                raise ValueError(f"data.{key}={value} but the saved run had {saved.get(key)}; set data.{key} to that")
        next_epoch = position.epoch + (position.consumed > 0)
        try:
            self._snapshots = taken_up(saved, self.identity, self._snapshot, next_epoch)
        except ValueError as error:
            raise ValueError(
                f"data.shards={self.config.shards} ({error}): the saved position belongs to other data; use the "
                f"dataset, {self.selected_by} of the saved run, or start at the beginning of an epoch"
            ) from error
        self.orders = self.fresh_orders()
        if saved["index"] == self.dataset.digest:
            return ""
        return (
            f"{self.config.shards} has grown since the checkpoint: split {self.config.split} has "
            f"{counted(len(self.selection.rows), 'sample')} now; the new ones are read from epoch {next_epoch} on"
        )

    def _snapshot(self, epoch: int, shards: int | None = None) -> Snapshot:
        """The first shards of the dataset, or all of them, to be read from an epoch on."""
        return Snapshot.take(epoch, self.dataset.shards[:shards], self.selection)
