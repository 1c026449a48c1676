"""A dataset that changes after it was complete: retries and further manifests. Verified after each step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import take_down
from tests.data_pipeline.build import stub
from tests.data_pipeline.dataset.built import Built, power_cut_at


@pytest.fixture
def dataset(tmp_path: Path) -> Built:
    return Built(tmp_path)


def test_retrying_touches_the_quarantined_rows_alone(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 24)
    before = dataset.build(source)
    assert before.quarantined == {"undecodable": 3}  # rows 5, 17 and 23; row 11 has no caption
    units, shards = dataset.bytes_of("units/"), dataset.bytes_of("shards/")
    (source / "v004.mp4").write_text("clip 700")
    (source / "v016.mp4").write_text("reject too_small")
    after = dataset.build(source, retry=True)
    assert (after.input, after.committed, after.clips) == (24, before.committed + 1, before.clips + 1)
    assert after.rejected["too_small"] == before.rejected["too_small"] + 1
    assert after.quarantined == {"undecodable": 1}
    assert dataset.bytes_of("units/").items() >= units.items()
    assert dataset.bytes_of("shards/").items() >= shards.items()
    (source / "v022.mp4").write_text("clip 70")
    last = dataset.build(source, retry=True)
    assert (last.quarantined, last.accounted, last.committed) == ({}, 24, after.committed + 1)
    current = dataset.current
    assert plan_retry(current, 0) == current, "nothing is left to retry"
    assert [segment.rows for segment in current.plan.segments] == [24, 3, 1]


def test_a_retry_waits_for_the_build_to_be_complete(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 8)
    dataset.build(source)
    dataset.store.delete("units/000001.json")
    with pytest.raises(ValueError, match=r"1 units of .* are not committed; complete the build first"):
        plan_retry(dataset.current, 0)
    with pytest.raises(ValueError, match="complete the build first"):
        take_down(dataset.current, {"v000.mp4"})


def test_a_retry_is_of_the_rows_of_one_manifest(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 6)
    more = manifest(tmp_path / "more", ["x.mp4", "y.mp4"])
    (more.parent / "y.mp4").write_text("broken")
    dataset.build(source)
    assert dataset.build(more, append=True).quarantined == {"undecodable": 2}
    (source / "v004.mp4").write_text("clip 700")
    (more.parent / "y.mp4").write_text("clip 800")
    assert dataset.build(more, retry=True).quarantined == {"undecodable": 1}
    segments = dataset.current.plan.segments
    assert [(s.kind, s.parent, s.rows) for s in segments[1:]] == [("manifest", 1, 2), ("retry", 1, 1)]
    assert dataset.build(source, retry=True).quarantined == {}


def manifest(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_text(f"clip {100 + number}")
    path = folder / "more.csv"
    path.write_text("video,caption\n" + "".join(f"{name},of {name}\n" for name in names))
    return path


def test_a_further_manifest_becomes_new_units(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 10)
    before = dataset.build(source)
    old = dataset.bytes_of("shards/") | dataset.bytes_of("units/")
    more = manifest(tmp_path / "more", ["x.mp4", "y.mp4", "z.mp4"])
    with pytest.raises(ValueError, match="--append to add"):
        dataset.build(more)
    after = dataset.build(more, append=True)
    assert (after.input, after.committed, after.clips) == (13, before.committed + 3, before.clips + 3)
    assert (dataset.bytes_of("shards/") | dataset.bytes_of("units/")).items() >= old.items()
    record = json.loads(dataset.store.read("units/000003.json"))
    assert [(fate["row"], fate["id"]) for fate in record["rows"]] == [(11, "x.mp4"), (12, "y.mp4"), (13, "z.mp4")]
    assert dataset.build(source).input == 13, "each source is known again"
    assert dataset.build(more).input == 13
    assert len(dataset.current.plan.segments) == 2


def test_a_plan_grows_when_the_rows_of_its_new_units_are_there(dataset: Built, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 10)
    dataset.build(source)
    current, parts = dataset.current, len(list(dataset.store.keys("plan/")))
    more = manifest(tmp_path / "more", ["x.mp4"])
    for growing in (lambda: dataset.build(more, append=True), lambda: plan_retry(current, 0)):
        with power_cut_at("plan.json"):
            growing()
        parts += 1
        assert len(list(dataset.store.keys("plan/"))) == parts
        assert dataset.current == current
    assert dataset.build(more, append=True).input == 11


def test_an_id_that_is_there_already_is_refused_or_merged(tmp_path: Path) -> None:
    for duplicates in Duplicates:
        dataset = Built(tmp_path / duplicates.value, duplicates)
        source = stub.write_sources(dataset.folder / "src", 6)
        before = dataset.build(source)
        more = manifest(dataset.folder / "more", ["x.mp4", "v001.mp4", "v000.mp4", "y.mp4", "v004.mp4"])
        if duplicates is Duplicates.ERROR:
            with pytest.raises(ValueError, match="3 ids stand for more than one row") as refused:
                dataset.build(more, append=True)
            for number in (0, 1, 4):
                assert f"'v00{number}.mp4' is row {number + 1} of the dataset already" in str(refused.value)
            assert len(dataset.current.plan.segments) == 1
        else:
            after = dataset.build(more, append=True)
            assert after.rejected["duplicate_id"] == dataset.current.plan.segments[1].duplicates == 3
            assert after.clips == before.clips + 2
