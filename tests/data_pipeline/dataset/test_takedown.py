"""Sources taken down from a complete dataset, also when the takedown is interrupted. Verified after each step."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.dataset.takedown import take_down
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


def test_unknown_ids_change_nothing(dataset: Built, tmp_path: Path) -> None:
    dataset.build(stub.write_sources(tmp_path / "src", 4))
    before = dataset.bytes_of("")
    with pytest.raises(ValueError, match=r"1 ids are of no source of .*: 'v099\.mp4'"):
        take_down(dataset.current, {"v000.mp4", "v099.mp4"})
    assert dataset.bytes_of("") == before
