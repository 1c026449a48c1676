"""Samples that cannot be read: which sample stands in for one, and how many are allowed."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from data_pipeline.read.loader import ClipLoader
from data_pipeline.read.two_tries import TooManyBadSamples
from tests.data_pipeline.dataset.tiny_dataset import split_into_shards, write_dataset
from tests.data_pipeline.read.loading import (
    CLIPS,
    break_samples,
    config,
    global_batches,
    zero_header,
    zero_video,
)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "own", split_into_shards(CLIPS, (5, 9)))


@pytest.mark.parametrize("how", [zero_video, zero_header])
def test_a_bad_sample_is_replaced_from_its_lane_the_same_for_all_ranks(
    own: Path, how: Callable[[bytearray, dict[str, int]], None]
) -> None:
    healthy = global_batches(config(own), 1, 5)
    keys = break_samples(own, [3, 4, 17], how)
    expected = global_batches(config(own), 1, 5)
    assert not {e[0] for b in expected for e in b} & set(keys)
    replaced = 0
    for before, after in zip(healthy, expected, strict=True):
        for one, other in zip(before, after, strict=True):
            assert (one == other) == (one[0] not in keys)
            replaced += one[0] in keys
    assert replaced >= 4  # 60 samples are two epochs and a bit
    for ranks, workers in ((2, 0), (3, 1), (6, 0)):
        assert global_batches(config(own, workers=workers), ranks, 5) == expected


def test_a_stand_in_is_seen_in_another_view_than_in_its_own_place(own: Path) -> None:
    """It shows twice in that epoch, which should not be twice the same example."""
    break_samples(own, [3, 4, 17], zero_video)
    examples = [e for b in global_batches(config(own), 1, 7) for e in b]  # three epochs of 28
    again = 0
    for epoch in range(3):
        shown: dict[str, str] = {}
        for key, *_, pixels in sorted(examples[28 * epoch : 28 * epoch + 28]):
            again += key in shown
            assert shown.setdefault(key, "other") != pixels
            shown[key] = pixels
    assert again >= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_reported_and_counted_once(own: Path, workers: int) -> None:
    keys = break_samples(own, [3, 4], zero_video)
    loader = ClipLoader(config(own, workers=workers, max_bad_samples=2))
    batches = list(islice(loader.from_position(), 6))
    substitutes = [s for b in batches for s in b.substitutes]
    loader.close()
    assert {b.key for b in loader.bad_samples} == set(keys)
    assert len(loader.bad_samples) == 2
    assert {s.bad.key for s in substitutes} == set(keys)
    assert all("ClipError" in str(b) and "shards/000000-000.tar" in str(b) for b in loader.bad_samples)
    assert len(substitutes) >= 4, "in each of two epochs and more"
    for batch in batches:
        for substitute in batch.substitutes:
            assert batch.keys[substitute.place] == substitute.key


def test_a_bad_sample_is_asked_for_twice_and_never_again(own: Path) -> None:
    """In the copy and in the store. Whoever downloads a shard for it in each epoch waits in each epoch."""
    break_samples(own, [3, 4], zero_video)
    loader = ClipLoader(config(own))
    asked: list[tuple[int, int]] = []
    read = loader.files.read_afresh
    loader.files.read_afresh = lambda *place: asked.append(place[:2]) or read(*place)  # type: ignore[method-assign, func-returns-value, assignment]
    list(islice(loader.from_position(), 7))
    loader.close()
    bad = [(loader.table[row].shard, loader.table[row].offset) for row in (3, 4)]
    assert sorted(place for place in asked if place in bad) == sorted(bad * 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_past_the_budget_the_run_stops_with_the_list(own: Path, workers: int) -> None:
    keys = break_samples(own, [3, 4, 20], zero_video)
    loader = ClipLoader(config(own, workers=workers, max_bad_samples=1))
    with pytest.raises(TooManyBadSamples, match=r"data\.max_bad_samples=1") as caught:
        list(islice(loader.from_position(), 6))
    assert sum(key in str(caught.value) for key in keys) >= 2
    assert "verify_shards" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_with_nothing_readable_stops(own: Path, workers: int) -> None:
    break_samples(own, list(range(31)), zero_video)
    with pytest.raises(TooManyBadSamples, match=r": 7 samples of .* cannot be read"):  # all of a lane, each once
        next(ClipLoader(config(own, workers=workers)).from_position())
