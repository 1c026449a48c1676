"""Which shards come next, and that they are in the cache before their samples are read."""

import time
from pathlib import Path

import numpy as np

from data_pipeline.read.growth import GrowingOrder
from data_pipeline.read.loader import ClipLoader, Position
from data_pipeline.read.order import BatchPlan, EpochOrder
from data_pipeline.read.shard_prefetch import upcoming_shards
from tests.data_pipeline.read.loading import cached, remote


def test_upcoming_shards_are_those_the_next_samples_lie_in() -> None:
    order = EpochOrder(np.array([5, 3, 8, 2, 6, 4, 7]), 4, 3, 0)  # N = 35, L = 8
    owner = np.repeat(np.arange(7), order.counts)
    plan = BatchPlan(4, 4, 2)
    for rank in range(2):
        for epoch in (0, 1):
            for place in range(8):
                upcoming = upcoming_shards(GrowingOrder([(0, order)]), plan.rank_lanes(rank), epoch, place, ahead=5)
                begin = epoch * 32 + place * 4
                needed = set()
                for start in range(begin, begin + 5 * 4, 4):
                    epochs, positions = np.divmod(plan.rank_samples(start, rank), 32)
                    for e, p in zip(epochs, positions, strict=True):
                        needed.add(int(owner[order.sample_at(int(e), int(p))]))
                assert needed <= set(upcoming)
                assert len(set(upcoming)) == len(upcoming)


def test_the_prefetcher_fills_the_cache_before_the_samples_are_read(shared_uri: str, tmp_path: Path) -> None:
    loader = ClipLoader(remote(shared_uri, tmp_path, shuffle_window=1000))
    running = loader.from_position(Position(0, 12))
    next(running)
    prefetch = loader._prefetcher()  # a window is a whole lane here, so all shards are upcoming
    prefetch.advance(0, 0)
    objects, end = 1 + np.count_nonzero(loader.selection.counts), time.monotonic() + 120
    while cached(tmp_path) < objects and time.monotonic() < end:
        time.sleep(0.01)
    assert cached(tmp_path) == objects
    prefetch.close()
    loader.close()
