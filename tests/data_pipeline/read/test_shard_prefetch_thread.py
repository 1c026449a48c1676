"""Fetching ahead: which shards, how many bytes of them, from where, and what a failure of it costs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.read import sample_loader as loader_module
from data_pipeline.read.growth import GrowingOrder
from data_pipeline.read.loader import ClipLoader, Position
from data_pipeline.read.order import EpochOrder
from data_pipeline.read.shard_prefetch import ShardPrefetcher, upcoming_shards
from tests.data_pipeline.dataset.tiny_dataset import split_into_shards, write_dataset
from tests.data_pipeline.read.loading import CLIPS, config

LANES = np.arange(2)


class Files:
    """Remote shards of 100 bytes each that note what is fetched of them."""

    def __init__(self, shards: int, capacity: int, error: Exception | None = None) -> None:
        self.cache = SimpleNamespace(capacity=capacity)
        entries = [SimpleNamespace(name=f"{number}.tar", bytes=100) for number in range(shards)]
        self.dataset = SimpleNamespace(shards=entries)
        self.fetched: list[int] = []
        self.error = error

    def prefetch(self, shard: int) -> None:
        self.fetched.append(shard)
        if self.error is not None:
            raise self.error


def order() -> GrowingOrder:
    """Twelve shards of 5 samples in two lanes of 30, shuffled in windows of 10: four shards of each window at most."""
    return GrowingOrder([(0, EpochOrder(np.full(12, 5), 2, 10, 0))])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_upcoming_shards_are_the_windows_of_the_places_ahead_and_no_more() -> None:
    """From place 5 of 30: 5 places to the end of its window are enough for `ahead=5`, the sixth opens the next one."""
    for epoch in (0, 1):

        def windows(*begins: int, epoch: int = epoch) -> set[int]:
            of_epoch = order().at(epoch)
            return {s for lane in (0, 1) for b in begins for s in of_epoch.lane_shards(epoch, lane, b, b + 10).tolist()}

        assert set(upcoming_shards(order(), LANES, epoch, 5, 5)) == windows(0)
        assert set(upcoming_shards(order(), LANES, epoch, 5, 6)) == windows(0, 10)
        assert set(upcoming_shards(order(), LANES, epoch, 5, 15)) == windows(0, 10)
        assert set(upcoming_shards(order(), LANES, epoch, 25, 5)) == windows(20)
    following = upcoming_shards(order(), LANES, 0, 25, 6)
    assert following == list(
        dict.fromkeys(
            [s for lane in (0, 1) for s in order().at(0).lane_shards(0, lane, 20, 30).tolist()]
            + [s for lane in (0, 1) for s in order().at(1).lane_shards(1, lane, 0, 10).tolist()]
        )
    ), "the nearest first, and on into the next epoch"


def run(files: Files, budget: int, *places: tuple[int, int]) -> ShardPrefetcher:
    prefetcher = ShardPrefetcher(files, order(), LANES, ahead=20, budget=budget)  # type: ignore[arg-type]
    for place in places:
        prefetcher.advance(*place)
    return prefetcher


@pytest.mark.parametrize(("budget", "count"), [(99, 0), (100, 1), (399, 3), (400, 4)])
def test_no_more_bytes_are_fetched_than_the_budget_allows(budget: int, count: int) -> None:
    files = Files(12, 10_000)
    prefetcher = run(files, budget, (0, 0))
    wait_for(lambda: prefetcher._target is None and len(files.fetched) >= count)
    prefetcher.close()
    assert files.fetched == upcoming_shards(order(), LANES, 0, 0, 20)[:count]


def test_a_window_is_looked_through_once() -> None:
    """Places of the same window ask for nothing anew, which for an S3 store would be a lock for each shard and step."""
    files = Files(12, 10_000)
    prefetcher = run(files, 10_000, (0, 0))
    first = upcoming_shards(order(), LANES, 0, 0, 20)
    wait_for(lambda: len(files.fetched) == len(first))
    for place in range(1, 10):
        prefetcher.advance(0, place)
        wait_for(lambda: prefetcher._target is None)
    prefetcher.advance(0, 10)
    second = upcoming_shards(order(), LANES, 0, 10, 20)
    wait_for(lambda: len(files.fetched) >= len(first) + len(second))
    prefetcher.close()
    assert files.fetched == first + second


def test_a_failure_is_left_to_who_reads_the_shard(caplog: pytest.LogCaptureFixture) -> None:
    files = Files(12, 10_000, error=PermissionError("no rights"))
    with caplog.at_level(logging.WARNING):
        prefetcher = run(files, 200, (0, 0))
        wait_for(lambda: len(files.fetched) == 2)
        prefetcher.close()
    assert caplog.messages == [f"prefetch of {shard}.tar: no rights" for shard in files.fetched]


@pytest.mark.parametrize(("spare", "warns"), [(0, False), (-1, True)])
def test_a_cache_smaller_than_one_window_is_warned_of(
    spare: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shards = len(upcoming_shards(order(), LANES, 0, 0, 1))
    files = Files(12, 100 * shards + spare)
    prefetcher = run(files, 0)
    with caplog.at_level(logging.WARNING):
        prefetcher.check_room(0, 0)
    prefetcher.close()
    assert [f"raise it above {200 * shards} for each rank" in text for text in caplog.messages] == [True] * warns


def test_closing_wakes_a_thread_that_waits() -> None:
    before = threading.active_count()
    run(Files(12, 10_000), 10_000).close()
    assert threading.active_count() == before


def test_the_loader_tells_where_its_lanes_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """31 clips in 4 lanes of 7. Half of the cache is for shards ahead, the other for those being read."""
    root = write_dataset(tmp_path, split_into_shards(CLIPS, (4, 1, 6, 0, 2)))
    told: list[Any] = []

    class Watched(ShardPrefetcher):
        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            told.append((more["ahead"], more["budget"]))

        def check_room(self, epoch: int, place: int) -> None:
            told.append((epoch, place))

        advance = check_room

    monkeypatch.setattr(loader_module, "ShardPrefetcher", Watched)
    loader = ClipLoader(config(root, cache_bytes=1001, workers=0, prefetch=2))
    list(islice(loader.from_position(Position(1, 8)), 2))
    loader.close()
    # no batch ahead of the one that is read, which is three rows of the lanes; and one window of three
    assert told[0] == (3 + 3, 500)
    assert told[1:] == [(1, 2), (1, 2), (1, 5), (2, 1)]
