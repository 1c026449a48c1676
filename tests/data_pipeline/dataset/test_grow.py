"""A dataset that changes after it was complete: retries, further manifests, takedowns. Verified after each step."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Plan, read_plan
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import take_down, taken_down
from data_pipeline.dataset.units import committed_units
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub


class Dataset:
    """A dataset built in this process: what the builder does, without Ray."""

    def __init__(self, folder: Path, duplicates: Duplicates = Duplicates.ERROR) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "out")
        self.duplicates = duplicates

    def build(self, source: Path, *, append: bool = False, retry: bool = False) -> Ledger:
        config = ShardsConfig(source=str(source), output=str(self.store.root), unit_rows=4, duplicates=self.duplicates)
        planned = make_plan(config, stub.ENCODER, self.store, append=append)
        plan = plan_retry(self.store, planned.plan, planned.parent) if retry else planned.plan
        worker = Worker(BuildJob(config, plan, planned.base, taken_down(self.store)), stub.cut)
        missing = deque(sorted(set(range(plan.units)) - committed_units(self.store)))
        while missing:
            worker.run(missing.popleft())
        dataset = finalize(self.store, plan)
        assert verify(self.store).problems == []
        return Ledger.of_dataset(dataset)

    @property
    def plan(self) -> Plan:
        return read_plan(self.store)

    def samples(self) -> dict[str, str]:
        """Sample key -> the bytes of its video, read through the index."""
        import pyarrow as pa

        shards = [shard["name"] for shard in json.loads(self.store.read("dataset.json"))["shards"]]
        rows = pa.ipc.open_file(str(self.store.path("index.arrow"))).read_all().to_pylist()
        return {
            row["key"]: self.store.read(shards[row["shard"]], row["video_offset"], row["video_size"]).hex()
            for row in rows
        }

    def bytes_of(self, prefix: str) -> dict[str, bytes]:
        return {key: self.store.read(key) for key in self.store.list(prefix)}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def test_retrying_touches_the_quarantined_rows_alone(dataset: Dataset, tmp_path: Path) -> None:
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
    plan = dataset.plan
    assert plan_retry(dataset.store, plan, 0) == plan, "nothing is left to retry"
    assert [segment.rows for segment in plan.segments] == [24, 3, 1]


def test_a_retry_waits_for_the_build_to_be_complete(dataset: Dataset, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 8)
    dataset.build(source)
    dataset.store.delete("units/000001.json")
    with pytest.raises(ValueError, match=r"1 units of .* are not committed; complete the build first"):
        plan_retry(dataset.store, dataset.plan, 0)
    with pytest.raises(ValueError, match="complete the build first"):
        take_down(dataset.store, dataset.plan, {"v000.mp4"})


def test_a_retry_is_of_the_rows_of_one_manifest(dataset: Dataset, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 6)
    more = manifest(tmp_path / "more", ["x.mp4", "y.mp4"])
    (more.parent / "y.mp4").write_text("broken")
    dataset.build(source)
    assert dataset.build(more, append=True).quarantined == {"undecodable": 2}
    (source / "v004.mp4").write_text("clip 700")
    (more.parent / "y.mp4").write_text("clip 800")
    assert dataset.build(more, retry=True).quarantined == {"undecodable": 1}
    assert [(s.kind, s.parent, s.rows) for s in dataset.plan.segments[1:]] == [("manifest", 1, 2), ("retry", 1, 1)]
    assert dataset.build(source, retry=True).quarantined == {}


def test_a_source_that_was_tried_again_can_be_taken_down(dataset: Dataset, tmp_path: Path) -> None:
    """It has two entries in the ledger; the later one, which says what it was before, is the one that changes."""
    source = stub.write_sources(tmp_path / "src", 12)
    dataset.build(source)
    (source / "v004.mp4").write_text("clip 700")
    before = dataset.build(source, retry=True)
    after = Ledger.of_dataset(take_down(dataset.store, dataset.plan, {"v004.mp4"}))
    assert verify(dataset.store).problems == []
    assert (after.input, after.accounted, after.quarantined) == (12, 12, before.quarantined)
    assert (after.clips, after.rejected["taken_down"]) == (before.clips - 1, 1)
    assert not any(key.startswith("v004-") for key in dataset.samples())


def manifest(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_text(f"clip {100 + number}")
    path = folder / "more.csv"
    path.write_text("video,caption\n" + "".join(f"{name},of {name}\n" for name in names))
    return path


def test_a_further_manifest_becomes_new_units(dataset: Dataset, tmp_path: Path) -> None:
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
    assert len(dataset.plan.segments) == 2


def test_a_plan_grows_when_the_rows_of_its_new_units_are_there(dataset: Dataset, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 10)
    dataset.build(source)
    plan, parts = dataset.plan, len(list(dataset.store.list("plan/")))
    more = manifest(tmp_path / "more", ["x.mp4"])
    for growing in (lambda: dataset.build(more, append=True), lambda: plan_retry(dataset.store, plan, 0)):
        with power_cut_at("plan.json"):
            growing()
        parts += 1
        assert len(list(dataset.store.list("plan/"))) == parts
        assert dataset.plan == plan
    assert dataset.build(more, append=True).input == 11


def test_an_id_that_is_there_already_is_refused_or_merged(tmp_path: Path) -> None:
    for duplicates in Duplicates:
        dataset = Dataset(tmp_path / duplicates.value, duplicates)
        source = stub.write_sources(dataset.folder / "src", 6)
        before = dataset.build(source)
        more = manifest(dataset.folder / "more", ["x.mp4", "v001.mp4"])
        if duplicates is Duplicates.ERROR:
            with pytest.raises(ValueError, match=r"'v001\.mp4' is row 2 of the dataset already"):
                dataset.build(more, append=True)
            assert len(dataset.plan.segments) == 1
        else:
            after = dataset.build(more, append=True)
            assert after.rejected["duplicate_id"] == dataset.plan.segments[1].duplicates == 1
            assert after.clips == before.clips + 1


def test_taking_sources_down_rewrites_their_shards_alone(dataset: Dataset, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 12)
    (source / "v000.mp4").write_text("clip 3001\nclip 70001")  # like no other
    before = dataset.build(source)
    samples, old = dataset.samples(), dataset.bytes_of("")
    ids = {"v000.mp4", "v004.mp4"}  # one with two clips, one that is quarantined; both in the first two units
    described = take_down(dataset.store, dataset.plan, ids)
    assert verify(dataset.store).problems == []
    after = Ledger.of_dataset(described)
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


@contextmanager
def power_cut_at(key: str) -> Iterator[None]:
    """The write of one object does not happen any more, nor anything after it."""
    original = LocalStore.write

    def dying(store: LocalStore, name: str, data: bytes) -> None:
        if name == key:
            raise OSError("power cut")
        original(store, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "write", dying)
        with pytest.raises(OSError, match="power cut"):
            yield


def test_an_interrupted_takedown_is_completed_by_the_same_call(dataset: Dataset, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 12)
    dataset.build(source)
    ids = {"v000.mp4", "v006.mp4"}
    with power_cut_at("units/000001.json"):
        take_down(dataset.store, dataset.plan, ids)
    assert not dataset.store.exists("dataset.json"), "it does not describe the units any more"
    take_down(dataset.store, dataset.plan, ids)
    assert verify(dataset.store).problems == []
    assert not any(key.startswith(("v000-", "v006-")) for key in dataset.samples())


def test_a_later_takedown_forgets_none_of_the_earlier_ones(dataset: Dataset, tmp_path: Path) -> None:
    source = stub.write_sources(tmp_path / "src", 12)
    dataset.build(source)
    take_down(dataset.store, dataset.plan, {"v000.mp4"})
    take_down(dataset.store, dataset.plan, {"v006.mp4"})
    assert taken_down(dataset.store) == {"v000.mp4", "v006.mp4"}
    for unit in range(3):
        dataset.store.delete(f"units/{unit:06d}.json")
    assert dataset.build(source).rejected["taken_down"] == 2
    assert not any(key.startswith(("v000-", "v006-")) for key in dataset.samples())


def test_a_source_is_taken_down_by_its_id_whatever_its_video_is_called(dataset: Dataset, tmp_path: Path) -> None:
    """Two rows of one video: only one of them goes, also when their unit is built again."""
    stub.write_sources(tmp_path / "src", 2)
    source = tmp_path / "src" / "m.csv"
    source.write_text("id,video,caption\none,v000.mp4,x\nother,v000.mp4,x\n")
    dataset.build(source)
    take_down(dataset.store, dataset.plan, {"one"})
    left = dataset.samples()
    assert {key.partition("-")[0] for key in left} == {"other"}
    dataset.store.delete("units/000000.json")
    dataset.build(source)
    assert dataset.samples() == left


def test_a_damaged_sample_is_not_copied_under_a_digest_of_its_own(dataset: Dataset, tmp_path: Path) -> None:
    dataset.build(stub.write_sources(tmp_path / "src", 4))
    damaged = next(key for key in dataset.samples() if key.startswith("v002-"))
    key = "shards/000000-000.tar"
    data = bytearray(dataset.store.read(key))
    data[data.index(damaged.encode() + b".mp4") + 600] ^= 1  # in the video behind its header of 512 bytes
    dataset.store.write(key, bytes(data))
    record = dataset.store.read("units/000000.json")
    with pytest.raises(ValueError, match=rf"{key}: sample {damaged} is damaged; run launch/verify_shards\.py"):
        take_down(dataset.store, dataset.plan, {"v000.mp4"})
    assert dataset.store.read("units/000000.json") == record
    assert dataset.store.read(key) == bytes(data)


def test_unknown_ids_change_nothing(dataset: Dataset, tmp_path: Path) -> None:
    dataset.build(stub.write_sources(tmp_path / "src", 4))
    before = dataset.bytes_of("")
    with pytest.raises(ValueError, match=r"1 ids are of no source of .*: 'v099\.mp4'"):
        take_down(dataset.store, dataset.plan, {"v000.mp4", "v099.mp4"})
    assert dataset.bytes_of("") == before
