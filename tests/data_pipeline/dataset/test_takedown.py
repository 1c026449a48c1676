"""Sources taken down from a complete dataset, also when the takedown is interrupted. Verified after each step."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.takedown import take_down, taken_down
from data_pipeline.dataset.verify import verify
from tests.data_pipeline.build import stub
from tests.data_pipeline.dataset.built import Built, power_cut_at


@pytest.fixture
def dataset(tmp_path: Path) -> Built:
    return Built(tmp_path)


def test_taking_sources_down_rewrites_their_shards_alone(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 12)
    (source / "v000.mp4").write_text("clip 3001\nclip 70001")  # like no other
    before = dataset.build(source)
    samples, old = dataset.samples(), dataset.bytes_of("")
    ids = {"v000.mp4", "v004.mp4"}  # one with two clips, one that is quarantined; both in the first two units
    description = take_down(dataset.current, ids)
    assert verify(dataset.store).problems == []
    after = description.ledger
    assert (after.clips, after.rejected["taken_down"]) == (before.clips - 2, 2)
    assert after.accounted == before.input
    gone = set(samples) - set(dataset.samples())
    assert len(gone) == 2
    assert all(key.startswith("v000-mp4-") for key in gone)
    assert dataset.samples() == {key: data for key, data in samples.items() if key not in gone}
    for key, data in old.items():
        if key.startswith("shards/") and not key.startswith("shards/000000"):
            assert dataset.store.read(key) == data
    clips = [clip.data for clip in stub.cut(source / "v000.mp4").clips]
    assert not any(clip in data for clip in clips for data in dataset.bytes_of("shards/").values())
    dataset.store.delete("units/000000.json")
    rebuilt = dataset.build(source)
    assert rebuilt.rejected["taken_down"] == 2, "a unit that is built again leaves them out, too"
    assert rebuilt.clips == after.clips


def test_a_source_that_was_tried_again_can_be_taken_down(dataset: Built, tmp_path: Path) -> None:
    """It has two entries in the ledger; the later one, which says what it was before, is the one that changes."""
    source = stub.write_sources(tmp_path / "src", 12)
    dataset.build(source)
    (source / "v004.mp4").write_text("clip 700")
    before = dataset.build(source, retry=True)
    after = take_down(dataset.current, {"v004.mp4"}).ledger
    assert verify(dataset.store).problems == []
    assert (after.input, after.accounted, after.quarantined) == (12, 12, before.quarantined)
    assert (after.clips, after.rejected["taken_down"]) == (before.clips - 1, 1)
    assert not any(key.startswith("v004-") for key in dataset.samples())


def test_an_interrupted_takedown_is_completed_by_the_same_call(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 12)
    dataset.build(source)
    ids = {"v000.mp4", "v006.mp4"}
    with power_cut_at("units/000001.json"):
        take_down(dataset.current, ids)
    assert not dataset.store.exists("dataset.json"), "it does not describe the units any more"
    take_down(dataset.current, ids)
    assert verify(dataset.store).problems == []
    assert not any(key.startswith(("v000-", "v006-")) for key in dataset.samples())


def test_a_later_takedown_forgets_none_of_the_earlier_ones(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 12)
    dataset.build(source)
    take_down(dataset.current, {"v000.mp4"})
    take_down(dataset.current, {"v006.mp4"})
    assert taken_down(dataset.store) == {"v000.mp4", "v006.mp4"}
    for unit in range(3):
        dataset.store.delete(f"units/{unit:06d}.json")
    assert dataset.build(source).rejected["taken_down"] == 2
    assert not any(key.startswith(("v000-", "v006-")) for key in dataset.samples())


def test_a_damaged_sample_is_not_copied_under_a_digest_of_its_own(dataset: Built, tmp_path: Path) -> None:
    dataset.build(stub.write_sources(tmp_path / "src", 4))
    damaged = next(key for key in dataset.samples() if key.startswith("v002-"))
    key = "shards/000000-000.tar"
    data = bytearray(dataset.store.read(key))
    data[data.index(damaged.encode() + b".mp4") + 600] ^= 1  # in the video behind its header of 512 bytes
    dataset.store.write(key, bytes(data))
    record = dataset.store.read("units/000000.json")
    with pytest.raises(ValueError, match=rf"{key}: sample {damaged} is damaged; run launch/verify_shards\.py"):
        take_down(dataset.current, {"v000.mp4"})
    assert dataset.store.read("units/000000.json") == record
    assert dataset.store.read(key) == bytes(data)


def test_unknown_ids_change_nothing(dataset: Built, tmp_path: Path) -> None:
    dataset.build(stub.write_sources(tmp_path / "src", 4))
    before = dataset.bytes_of("")
    with pytest.raises(ValueError, match=r"1 ids are of no source of .*: 'v099\.mp4'"):
        take_down(dataset.current, {"v000.mp4", "v099.mp4"})
    assert dataset.bytes_of("") == before


def test_a_source_is_taken_down_by_its_id_whatever_its_video_is_called(dataset: Built, tmp_path: Path) -> None:
    """Two rows of one video: only one of them goes, also when their unit is built again."""
    stub.write_sources(tmp_path / "src", 2)
    source = tmp_path / "src" / "m.csv"
    source.write_text("id,video,caption\none,v000.mp4,x\nother,v000.mp4,x\n")
    dataset.build(source)
    take_down(dataset.current, {"one"})
    left = dataset.samples()
    assert {key.partition("-")[0] for key in left} == {"other"}
    dataset.store.delete("units/000000.json")
    dataset.build(source)
    assert dataset.samples() == left


def test_a_source_whose_id_was_merged_into_it_in_a_later_unit_is_taken_down(tmp_path: Path) -> None:
    """The clips are those of the first row with the id; the rows behind it, of another unit, have none."""
    stub.write_sources(tmp_path / "src", 6)
    source = tmp_path / "src" / "m.csv"
    rows = [f"id{number},v00{number}.mp4,caption" for number in range(6)]
    source.write_text("\n".join(["id,video,caption", *rows, "id0,v000.mp4,again"]) + "\n")
    dataset = Built(tmp_path, Duplicates.MERGE)
    dataset.build(source)
    samples = dataset.samples()
    after = take_down(dataset.current, {"id0"})
    assert verify(dataset.store).problems == []
    assert after.ledger.rejected["taken_down"] == 2
    gone = {key for key in samples if key.startswith("id0-")}
    assert gone
    assert set(dataset.samples()) == set(samples) - gone
