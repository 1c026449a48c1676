"""Whether the shards that dataset.json lists are there, by one listing: on a folder, and the requests that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.presence import check_present
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset


class Listed(LocalStore):
    """A folder that notes which listings are asked of it, and refuses to be asked for single objects."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.listings: list[str] = []

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self.listings.append(prefix)
        return ((key, (self.root / key).stat().st_size) for key in self.keys(prefix))

    def size(self, key: str) -> int:
        raise AssertionError(f"a request for {key} alone")


@pytest.mark.parametrize("per_shard", [[1], [6]])  # six shards, and a single one
def test_whole_shards_are_found_by_one_listing_of_their_folder(tmp_path: Path, per_shard: list[int]) -> None:
    root = write_dataset(tmp_path, split_into_shards(make_clips(6), per_shard))
    (root / "shards" / "left-over").write_bytes(b"of no account")
    dataset, store = DatasetFile.load(LocalStore(root)), Listed(root)
    check_present(store, dataset)
    assert store.listings == ["shards/"]


def test_the_first_that_are_missing_or_cut_off_are_named_with_their_number(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, split_into_shards(make_clips(6), [1]))
    dataset = DatasetFile.load(LocalStore(root))
    shards = sorted((root / "shards").iterdir())
    whole = shards[0].stat().st_size
    shards[0].write_bytes(shards[0].read_bytes()[:-10])
    for shard in shards[2:]:
        shard.unlink()
    message = (
        f"5 of 6 shards are not as dataset\\.json lists them: shards/{shards[0].name} has {whole - 10} bytes and not "
        f"{whole}, shards/{shards[2].name} is missing, shards/{shards[3].name} is missing and 2 more; copy them there"
    )
    with pytest.raises(ValueError, match=message):
        check_present(LocalStore(root), dataset)


def test_as_many_as_are_named_are_all_and_no_more_are_spoken_of(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, split_into_shards(make_clips(6), [1]))
    dataset = DatasetFile.load(LocalStore(root))
    names = sorted(shard.name for shard in (root / "shards").iterdir())
    for name in names[:3]:
        (root / "shards" / name).unlink()
    missing = ", ".join(f"shards/{name} is missing" for name in names[:3])
    with pytest.raises(ValueError, match=f"3 of 6 shards are not as dataset\\.json lists them: {missing}; copy them"):
        check_present(LocalStore(root), dataset)
