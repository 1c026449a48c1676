"""Downloads the shards that come next in the order, while the workers read the present ones."""

from __future__ import annotations

import logging
import threading

import numpy as np
import numpy.typing as npt

from data_pipeline.read.growth import GrowingOrder
from data_pipeline.read.shard_files import ShardFiles

log = logging.getLogger(__name__)


def upcoming_shards(
    orders: GrowingOrder, lanes: npt.NDArray[np.int64], epoch: int, place: int, ahead: int
) -> list[int]:
    """The shards that these lanes will read, the nearest first.

    Args:
        orders: the formula of the order.
        lanes: the lanes of a rank.
        epoch, place: where each lane stands; `place` is a position inside a lane.
        ahead: least number of places to look ahead, to the end of a shuffle window and also into the next epoch.
    """
    order = orders.at(epoch)
    begin = place - place % order.window
    shards: dict[int, None] = {}
    while ahead > 0:
        end = min(begin + order.window, order.lane_length)
        for lane in lanes:
            shards.update(dict.fromkeys(order.lane_shards(epoch, int(lane), begin, end).tolist()))
        ahead -= end - max(begin, place)
        begin, place = end, end
        if begin >= order.lane_length:
            begin, place, epoch = 0, 0, epoch + 1
            order = orders.at(epoch)
    return list(shards)


class ShardPrefetcher:
    """One thread that downloads shards before the workers read them. It does nothing for a local dataset.

    Args:
        files: the dataset's shards.
        orders: the formula of the order, which only this object uses, because its caches are not made for two threads.
        lanes: the lanes of this rank.
        ahead: places of a lane to look ahead.
        budget: most bytes of shards to download ahead.
    """

    def __init__(
        self, files: ShardFiles, orders: GrowingOrder, lanes: npt.NDArray[np.int64], ahead: int, budget: int
    ) -> None:
        self._files, self._orders, self._lanes, self._ahead, self._budget = files, orders, lanes, ahead, budget
        self._target: tuple[int, int] | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        if files.cache is not None:
            self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
            self._thread.start()

    def check_room(self, epoch: int, place: int) -> None:
        """Warn when the shards of one shuffle window alone do not fit into the cache."""
        if self._files.cache is None:
            return
        shards = upcoming_shards(self._orders, self._lanes, epoch, place, ahead=1)
        total = sum(self._files.dataset.shards[shard].bytes for shard in shards)
        if total > self._files.cache.capacity:
            log.warning(
                "data.cache_bytes=%d holds less than the %d shards (%d bytes) that this rank reads at once, so shards "
                "will be downloaded again and again; raise it above %d for each rank of the node, or lower "
                "data.shuffle_window",
                self._files.cache.capacity,
                len(shards),
                total,
                2 * total,
            )

    def advance(self, epoch: int, place: int) -> None:
        """Take note of the position that every lane has reached."""
        with self._changed:
            self._target = (epoch, place)
            self._changed.notify()

    def close(self) -> None:
        """Stop after the download in progress. A download that takes longer than 5 s is left to end by itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        fetched: tuple[int, int] | None = None  # epoch and window up to which the cache was filled last
        while True:
            with self._changed:
                while not self._stopped and self._target is None:
                    self._changed.wait()
                if self._stopped or self._target is None:
                    return
                (epoch, place), self._target = self._target, None
            window = (epoch, place // self._orders.at(epoch).window)
            if window != fetched:
                self._fetch(upcoming_shards(self._orders, self._lanes, epoch, place, self._ahead))
                fetched = window

    def _fetch(self, shards: list[int]) -> None:
        spent = 0
        for shard in shards:
            spent += self._files.dataset.shards[shard].bytes
            if self._stopped or spent > self._budget:
                return
            try:
                self._files.prefetch(shard)
            except OSError as error:  # the worker that needs the shard meets the same error, and decides what follows
                log.warning("prefetch of %s: %s", self._files.dataset.shards[shard].name, error)
