"""What a proof must find: damage to records and indexes that no digest of a file gives away, and a dataset's state."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.dataset.finalize import describe, finalize, status
from data_pipeline.dataset.index import IndexRow, index_rows, read_unit_index, unit_index
from data_pipeline.dataset.plan import Dataset, read_plan
from data_pipeline.dataset.units import ordered_units, read_unit
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub
from tests.data_pipeline.dataset.built import Built, power_cut_at

UNIT = 3  # of the four rows 13 to 16: two clips, one clip, a rejected stretch and a clip, a rejection


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified dataset of 24 rows in six units, built without Ray."""
    folder = tmp_path_factory.mktemp("verify")
    Built(folder).build(stub.write_sources(folder / "src", 24))
    return folder / "out"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> LocalStore:
    """A copy of it to be damaged."""
    return LocalStore(shutil.copytree(whole, tmp_path / "copy"))


def edit_record(store: LocalStore, change: Callable[[dict[str, Any]], object], unit: int = UNIT) -> None:
    path = store.local_path(f"units/{unit:06d}.json")
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def edit_index(store: LocalStore, change: Callable[[list[IndexRow]], object]) -> None:
    """Change the samples of the unit's index, and let its record vouch for the new file."""
    key = f"units/{UNIT:06d}.arrow"
    samples = index_rows(read_unit_index(store.read(key)))
    change(samples)
    data = unit_index(samples)
    store.write(key, data)
    edit_record(store, lambda record: record["index"].update(bytes=len(data), sha256=_sha256(data)))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flip_a_byte_and_vouch_for_it(store: LocalStore) -> str:
    """A builder that wrote a sample wrongly and took its digest afterwards."""
    key = f"shards/{UNIT:06d}-000.tar"
    sample = read_unit_index(store.read(f"units/{UNIT:06d}.arrow")).to_pylist()[1]
    data = bytearray(store.read(key))
    data[sample["video_offset"]] ^= 1
    store.write(key, bytes(data))
    edit_record(store, lambda record: record["shards"][0].update(sha256=_sha256(data)))
    return rf"unit 3: {key}: sample {sample['key']} has another checksum than in the index"


def give_two_samples_one_key(store: LocalStore) -> str:
    edit_index(store, lambda samples: setattr(samples[1], "key", samples[0].key))
    return r"unit 3: sample v012-mp4-\w+-0000 is in the index 2 times"


def move_a_video(store: LocalStore) -> str:
    edit_index(store, lambda samples: setattr(samples[0], "video_offset", samples[0].video_offset + 1))
    return r"000003-000\.tar: sample v012-mp4-\w+-0000 is not where the index says"


def shorten_a_video(store: LocalStore) -> str:
    edit_index(store, lambda samples: setattr(samples[0], "video_size", samples[0].video_size - 1))
    return r"000003-000\.tar: sample v012-mp4-\w+-0000 is not where the index says"


def rename_a_sample(store: LocalStore) -> str:
    edit_index(store, lambda samples: setattr(samples[0], "key", "another"))
    return r"000003-000\.tar: sample another is not where the index says"


def point_at_no_shard(store: LocalStore) -> str:
    edit_index(store, lambda samples: setattr(samples[0], "shard", 1))
    return r"unit 3: sample v012-mp4-\w+-0000 is in shard 1, the record has 1"


def lose_a_sample_of_the_index(store: LocalStore) -> str:
    edit_index(store, lambda samples: samples.pop())
    edit_record(store, lambda record: record["rows"][2].update(clips=0))
    return r"000003-000\.tar has 12 members, the index expects 9"


def count_a_sample_too_many(store: LocalStore) -> str:
    edit_record(store, lambda record: record["shards"][0].update(samples=5))
    return r"unit 3: shards/000003-000\.tar is recorded with 5 samples, the index has 4"


def hold_out_a_sample_in_the_index_alone(store: LocalStore) -> str:
    edit_index(store, lambda samples: setattr(samples[0], "split", "val"))
    return r"unit 3: shards/000003-000\.tar is recorded with 4 samples, the index has 4"


def turn_the_rows_round(store: LocalStore) -> str:
    edit_record(store, lambda record: record["rows"].reverse())
    return r"unit 3: its rows are not in the plan's order"


def add_a_record_of_no_unit(store: LocalStore) -> str:
    store.write("units/000006.json", store.read("units/000003.json"))
    return r"units/000006\.json is of no unit of the plan; delete it"


def add_an_index_of_no_record(store: LocalStore) -> str:
    store.write("units/000001-0123456789ab.arrow", b"left by a run that was killed")
    return r"units/000001-0123456789ab\.arrow belongs to no committed unit"


def take_the_record_of_another_unit(store: LocalStore) -> str:
    store.write("units/000003.json", store.read("units/000002.json"))
    return r"units/000003\.json cannot be used: it is not of this plan; delete .*units/000003\.json and run"


def take_the_record_of_another_plan(store: LocalStore) -> str:
    edit_record(store, lambda record: record.update(inputs="0" * 64))
    return r"units/000003\.json cannot be used: it is not of this plan"


def take_the_record_of_another_release(store: LocalStore) -> str:
    edit_record(store, lambda record: record.update(format=2))
    return r"units/000003\.json cannot be used: format 2, and this version reads 1;"


def lose_the_index_of_a_unit(store: LocalStore) -> str:
    store.delete(f"units/{UNIT:06d}.arrow")
    return r"units/000003\.json cannot be used: .*delete .*units/000003\.json and run"


def exchange_the_index_of_a_unit(store: LocalStore) -> str:
    store.write("units/000003.arrow", store.read("units/000002.arrow"))
    return r"units/000003\.json cannot be used: units/000003\.arrow is not the index it was committed with"


DAMAGES = [
    flip_a_byte_and_vouch_for_it, give_two_samples_one_key, move_a_video, shorten_a_video, rename_a_sample,
    point_at_no_shard, lose_a_sample_of_the_index, count_a_sample_too_many, hold_out_a_sample_in_the_index_alone,
    turn_the_rows_round, add_a_record_of_no_unit, add_an_index_of_no_record, take_the_record_of_another_unit,
    take_the_record_of_another_plan, take_the_record_of_another_release, lose_the_index_of_a_unit,
    exchange_the_index_of_a_unit,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_files_and_digests_do_not_show_is_found(damage: Callable[[LocalStore], str], store: LocalStore) -> None:
    expected = damage(store)
    problems = verify(store).problems
    assert any(re.search(expected, problem) for problem in problems), problems


def test_a_quick_look_reads_no_shard_but_sees_its_size(store: LocalStore) -> None:
    path = store.local_path("shards/000001-000.tar")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    quick = verify(store, contents=False)
    assert (quick.problems, quick.units, quick.shards) == ([], 6, 6)
    assert len(verify(store).problems) == 1
    path.write_bytes(data[:-1])
    assert [f"has {len(data) - 1} bytes" in problem for problem in verify(store, contents=False).problems] == [True]


def test_the_state_of_a_dataset_is_told_step_by_step(store: LocalStore) -> None:
    assert status(store).endswith("6 of 6 units committed (100.0 %) of 24 rows; complete")
    dataset = store.read("dataset.json")
    store.write("dataset.json", dataset.replace(read_plan(store).digest.encode(), b"0" * 64))
    assert status(store).endswith("; committed, not yet finalized"), "dataset.json of another plan"
    store.delete("dataset.json")
    assert status(store).endswith("; committed, not yet finalized")
    store.delete("units/000003.json")
    assert status(store).endswith("5 of 6 units committed (83.3 %) of 24 rows; in work or interrupted")
    store.delete("plan.json")
    with pytest.raises(ValueError, match=r"has no plan\.json"):
        status(store)


def test_an_index_that_does_not_hold_the_clips_of_the_rows_is_not_described(store: LocalStore, tmp_path: Path) -> None:
    """A clip that the index lacks, and rows that have no fate."""
    dataset = Dataset.open(store)
    good = list(ordered_units(dataset))
    clips = sum(fate.clips for unit in good for fate in unit.record.rows)
    edit_index(store, lambda samples: samples.pop())
    with pytest.raises(ValueError, match=rf"the ledger does not balance: .*; {clips} clips, {clips - 1} in the index"):
        describe(dataset.plan, ordered_units(dataset), tmp_path / "index.arrow")
    with pytest.raises(ValueError, match=r"the ledger does not balance: 24 source rows, 20 accounted for"):
        describe(dataset.plan, good[:-1], tmp_path / "index.arrow")


def test_a_unit_written_anew_between_its_record_and_its_index_is_read_as_it_is_now(store: LocalStore) -> None:
    """Another run replaces the record that was just read and removes the index that it names."""
    dataset, new = Dataset.open(store), "units/000003-0123456789ab.arrow"
    read = store.read

    def meanwhile(key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = read(key, offset, length)
        if key == "units/000003.json" and not store.exists(new):
            store.local_path("units/000003.arrow").rename(store.local_path(new))
            edit_record(store, lambda record: record["index"].update(name=new))
        return data

    store.read = meanwhile  # type: ignore[method-assign]
    assert read_unit(dataset, UNIT).record.index.name == new


def test_a_dataset_is_whole_when_its_description_appears(store: LocalStore) -> None:
    """Its index is there before it, and nothing is left to be swept after it."""
    store.delete("dataset.json")
    store.delete("index.arrow")
    store.write("shards/000001-007.tar", b"left by a run that was killed")
    with power_cut_at("dataset.json"):
        finalize(Dataset.open(store))
    assert store.exists("index.arrow")
    assert not store.exists("shards/000001-007.tar")
