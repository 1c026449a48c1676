"""A dataset to which shards were added: the epoch that has begun ends as it would have, the next one has the new ones.

The truth is two loaders that know no growth: one of the dataset as it was, one of the dataset as it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.read.config import DataConfig
from data_pipeline.read.growth import GrowingOrder
from data_pipeline.read.loader import ClipLoader, Position
from data_pipeline.read.order import EpochOrder
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset, write_other_index
from tests.data_pipeline.read.loading import config, fingerprint

LANES, BATCH = 4, 8
SHARDS = split_into_shards(make_clips(43), (9, 8))  # of 9, 8, 9, 8, 9 clips
GROWN = {2: 17, 4: 34, 5: 43}  # shards -> clips


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The dataset with its first 2, 4 and 5 shards."""
    folder = tmp_path_factory.mktemp("grown")
    return {count: write_dataset(folder / str(count), SHARDS[:count]) for count in GROWN}


def settings(root: Path, **changes: object) -> DataConfig:
    return config(root, global_batch=BATCH, lanes=LANES, **changes)


def samples(loader: ClipLoader, begin: Position, count: int) -> list[tuple[str, str, str, int, str]]:
    """The first `count` samples of the endless sequence from a position on, in the order of the sequence.

    A batch of two rows of lanes is laid lane by lane: its sample j stands in slot (j mod LANES) x 2 + j div LANES.
    """
    found: list[tuple[str, str, str, int, str]] = []
    for batch in loader.from_position(begin):
        laid = fingerprint(batch)
        found += [laid[j % LANES * (BATCH // LANES) + j // LANES] for j in range(BATCH)]
        if len(found) >= count:
            break
    loader.close()
    return found[:count]


def epoch_of(root: Path, epoch: int) -> list[tuple[str, str, str, int, str]]:
    """A whole epoch of a dataset that is as it always was."""
    loader = ClipLoader(settings(root))
    return samples(loader, Position(epoch, 0), len(loader))


@pytest.mark.parametrize("consumed", [0, 4, 8, 16])
def test_new_shards_are_read_from_the_next_epoch_on(roots: dict[int, Path], consumed: int) -> None:
    """Epochs of 16 and 32 samples: from an odd row on, batches straddle the two."""
    position = Position(3, consumed)
    loader = ClipLoader(settings(roots[4]))
    line = loader.continue_from(ClipLoader(settings(roots[2])).identity, position)
    first_new = 4 if consumed else 3
    assert line.endswith(f"split train has 34 samples now; the new ones are read from epoch {first_new} on")
    begun = epoch_of(roots[2], 3)[consumed:] if consumed else []
    expected = begun + [sample for epoch in (first_new, first_new + 1) for sample in epoch_of(roots[4], epoch)]
    assert samples(loader, position, len(expected)) == expected
    assert samples(loader, Position(first_new, 8), 16) == epoch_of(roots[4], first_new)[8:24]


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_and_workers_reads_the_same(roots: dict[int, Path], ranks: int) -> None:
    saved, position = ClipLoader(settings(roots[2])).identity, Position(0, 4)
    whole = ClipLoader(settings(roots[4]))
    whole.continue_from(saved, position)
    expected = [fingerprint(batch) for batch, _ in zip(whole.from_position(position), range(4), strict=False)]
    whole.close()
    shares = []
    for rank in range(ranks):
        loader = ClipLoader(settings(roots[4], workers=1), rank, ranks)
        loader.continue_from(saved, position)
        shares.append([fingerprint(b) for b, _ in zip(loader.from_position(position), range(4), strict=False)])
        loader.close()
    assert [[example for share in step for example in share] for step in zip(*shares, strict=True)] == expected


def test_a_dataset_may_grow_again_and_again(roots: dict[int, Path]) -> None:
    """Grown in epoch 1 and in epoch 3; and twice in epoch 1, of which the next epoch sees the last."""
    first = ClipLoader(settings(roots[4]))
    first.continue_from(ClipLoader(settings(roots[2])).identity, Position(1, 4))
    saved = json.loads(json.dumps(first.identity))
    assert ClipLoader(settings(roots[4])).continue_from(saved, Position(2, 8)) == ""
    later = ClipLoader(settings(roots[5]))
    later.continue_from(saved, Position(3, 8))
    whole = [epoch_of(roots[2], 1)[4:], epoch_of(roots[4], 2), epoch_of(roots[4], 3), epoch_of(roots[5], 4)]
    expected = [sample for epoch in whole for sample in epoch]
    assert samples(later, Position(1, 4), len(expected)) == expected
    at_once = ClipLoader(settings(roots[5]))
    at_once.continue_from(saved, Position(1, 8))
    expected = epoch_of(roots[2], 1)[8:] + epoch_of(roots[5], 2)
    assert samples(at_once, Position(1, 8), len(expected)) == expected


def test_what_was_read_must_be_there_unchanged(roots: dict[int, Path], tmp_path: Path) -> None:
    saved = ClipLoader(settings(roots[4])).identity
    with pytest.raises(ValueError, match="another index"):  # shards are missing
        ClipLoader(settings(roots[2])).continue_from(saved, Position(0, 8))
    swapped = write_dataset(tmp_path / "swapped", [SHARDS[0], SHARDS[2], SHARDS[1], *SHARDS[3:]])
    with pytest.raises(ValueError, match="another index"):
        ClipLoader(settings(swapped)).continue_from(saved, Position(0, 8))
    with pytest.raises(ValueError, match="other samples"):
        ClipLoader(settings(roots[5], frames=8)).continue_from(saved, Position(0, 8))
    renumbered = shutil.copytree(roots[4], tmp_path / "renumbered")
    write_other_index(renumbered)
    with pytest.raises(ValueError, match="another index"):  # the same shards, and yet not the same rows
        ClipLoader(settings(renumbered)).continue_from(saved, Position(0, 8))


def test_places_in_the_endless_sequence_are_counted_epoch_by_epoch() -> None:
    """Against a list of all places: epochs 0 and 1 have 6 samples, 2 to 4 have 9, and 15 follow."""
    counts = [np.array(sizes) for sizes in ([4, 3], [4, 3, 3], [4, 3, 3, 6])]
    orders = GrowingOrder([(first, EpochOrder(size, 3, 2, 0)) for first, size in zip((0, 2, 5), counts, strict=True)])
    lengths = [6, 6, 9, 9, 9, 15, 15, 15]
    assert [orders.at(epoch).epoch_samples for epoch in range(8)] == lengths
    places = [(epoch, position) for epoch, length in enumerate(lengths) for position in range(length)]
    epochs, positions = orders.locate(np.arange(len(places)))
    assert list(zip(epochs.tolist(), positions.tolist(), strict=True)) == places
    assert [orders.start(epoch) for epoch in range(8)] == [places.index((epoch, 0)) for epoch in range(8)]
