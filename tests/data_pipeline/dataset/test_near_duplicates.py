"""The search against comparing everything with everything; the pass against the files of a verified dataset."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.build.builder import plan_build
from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.dataset_job import DatasetResult
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.dataset import near_duplicates
from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.near_duplicates import drop_near_duplicates, find_alike
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from launch import drop_duplicates
from tests.data_pipeline.build import stub
from tests.data_pipeline.cut.videos import real_video
from tests.data_pipeline.dataset.built import Built, power_cut_at


def by_hand(hashes: list[int], rows: list[int], distance: int) -> list[tuple[int, int]]:
    """(position of the one that stays, bits), or (-1, 0): every clip against every earlier one that stays."""
    result: list[tuple[int, int]] = []
    for position, (value, row) in enumerate(zip(hashes, rows, strict=True)):
        near = [
            ((value ^ hashes[other]).bit_count(), other)
            for other in range(position)
            if result[other][0] < 0 and rows[other] != row
        ]
        bits, other = min(near, default=(64, -1))
        result.append((other, bits) if bits <= distance else (-1, 0))
    return result


@pytest.mark.parametrize("distance", range(8))
def test_the_search_finds_what_comparing_all_pairs_finds(distance: int) -> None:
    random = np.random.default_rng(distance)
    centres = [int(value) for value in random.integers(0, 2**64, 40, dtype=np.uint64)]
    hashes, rows = [], []
    for _ in range(500):
        value = centres[random.integers(len(centres))]
        for bit in random.choice(64, random.integers(0, 12), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
        rows.append(int(random.integers(200)))
    expected = by_hand(hashes, rows, distance)
    found = find_alike(np.array(hashes, np.uint64), np.array(rows, np.int64), distance)
    assert list(zip(found.of.tolist(), found.distance.tolist(), strict=True)) == expected
    assert 0 < found.dropped < 500
    with pytest.raises(ValueError, match="between 0 and 7 bits"):
        find_alike(np.zeros(1, np.uint64), np.zeros(1, np.int64), 8)


@pytest.fixture
def dataset(tmp_path: Path) -> Built:
    """Nine rows in three units. The stub's clips are alike when text and line of their files are the same."""
    source = tmp_path / "src"
    source.mkdir()
    texts = {
        "a": "clip 300\nclip 301",
        "b": "clip 400",
        "c": "clip 300\nclip 301",  # all of it is in a
        "d": "reject black",
        "e": "broken",
        "f": "clip 500\nclip 501\nreject frozen",
        "g": "clip 600",
        "h": "clip 400",  # is b
        "i": "clip 400",  # is b, and all of the third unit
    }
    for name, text in texts.items():
        (source / f"{name}.mp4").write_text(text)
        (source / f"{name}.txt").write_text("some caption")
    built = Built(tmp_path)
    built.build(source)
    return built


def fates(store: LocalStore) -> dict[str, Any]:
    return {
        fate["id"]: fate for key in store.keys("units/") if key.endswith(".json")
        for fate in json.loads(store.read(key))["rows"]
    }  # fmt: skip


def test_the_first_of_each_kind_stays_and_the_ledger_says_where(dataset: Built) -> None:
    store = dataset.store
    samples, before = dataset.samples(), dataset.bytes_of("")
    assert drop_near_duplicates(dataset.current, 0, write=False)[:2] == (4, 10)
    assert dataset.bytes_of("") == before, "counting changes nothing"
    assert drop_duplicates.main(["--shards", str(store.root), "--distance", "0"]) == 0
    assert verify(store).problems == []
    left = dataset.samples()
    assert sorted(key[0] for key in left) == ["a", "a", "b", "f", "f", "g"]
    assert all(samples[key] == data for key, data in left.items())
    ledger = read_dataset(store).ledger
    assert (ledger.input, ledger.accounted, ledger.committed) == (9, 9, 4)
    assert ledger.rejected == {"black": 1, "near_duplicate": 3}
    assert ledger.clips_rejected == {"black": 1, "frozen": 1, "near_duplicate": 4}
    (second,) = [item for item in fates(store)["c.mp4"]["rejected"] if item["clip"] == 1]
    assert second["measured"] == {"bits": 0, "of_row": 1, "of_clip": 1}
    assert (second["start"], second["end"]) == (1.0, 2.0)
    assert fates(store)["h.mp4"]["rejected"][0]["measured"]["of_row"] == 2
    after = dataset.bytes_of("")
    assert drop_near_duplicates(dataset.current, 0)[:2] == (0, 6)
    assert dataset.bytes_of("") == after, "the same pass again finds nothing"


def test_interrupted_it_is_completed_by_the_same_call(dataset: Built, tmp_path: Path) -> None:
    other = Built(tmp_path / "other")
    other.build(tmp_path / "src")
    drop_near_duplicates(other.current, 0)
    with power_cut_at("units/000001.json"):
        drop_near_duplicates(dataset.current, 0)
    assert not dataset.store.exists("dataset.json"), "it does not describe the units any more"
    drop_near_duplicates(dataset.current, 0)
    assert verify(dataset.store).problems == []
    assert dataset.samples() == other.samples()
    assert fates(dataset.store) == fates(other.store)


def test_two_runs_at_once_end_as_one_does(dataset: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one does all of it while the first is about to copy from a shard, which is gone then."""
    other = Built(tmp_path / "other")
    other.build(tmp_path / "src")
    drop_near_duplicates(other.current, 0)
    drop = near_duplicates._drop

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(near_duplicates, "_drop", drop)
        drop_near_duplicates(dataset.current, 0)
        drop(*arguments)

    monkeypatch.setattr(near_duplicates, "_drop", late)
    drop_near_duplicates(dataset.current, 0)
    assert dataset.bytes_of("shards/") == other.bytes_of("shards/")
    assert verify(dataset.store).problems == []


def test_a_shard_that_is_really_gone_is_an_error(dataset: Built) -> None:
    dataset.store.delete("shards/000000-000.tar")
    with pytest.raises(FileNotFoundError, match=r"000000-000\.tar"):
        drop_near_duplicates(dataset.current, 0)
    assert not dataset.store.exists("dataset.json")


def test_stretches_that_were_rejected_before_stay_in_the_ledger(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.mp4").write_text("reject black\nclip 300\nreject frozen")
        (source / f"{name}.txt").write_text("some caption")
    built = Built(tmp_path)
    built.build(source)
    drop_near_duplicates(built.current, 0)
    assert verify(built.store).problems == []
    found = fates(built.store)
    assert [(item["clip"], item["reason"]) for item in found["b.mp4"]["rejected"]] == [
        (0, "black"),
        (1, "near_duplicate"),
        (2, "frozen"),
    ]
    assert (found["b.mp4"]["fate"], found["b.mp4"]["reason"]) == ("rejected", "near_duplicate")
    assert (found["a.mp4"]["fate"], found["a.mp4"]["clips"]) == ("committed", 1)


def test_units_that_are_missing_are_not_passed_over(dataset: Built) -> None:
    dataset.store.delete("units/000001.json")
    before = dataset.bytes_of("")
    with pytest.raises(ValueError, match=r"1 units of .* are not committed; complete the build first"):
        drop_near_duplicates(dataset.current, 0)
    assert dataset.bytes_of("") == before


# --- as part of a build's finalisation -------------------------------------------------------------------------------


def config_of(source: Path, output: Path, near_duplicates: int | None = 0) -> ShardsConfig:
    return ShardsConfig(source=str(source), output=str(output), unit_rows=4, near_duplicates=near_duplicates)


def run_build(source: Path, output: Path, near_duplicates: int | None = 0) -> DatasetResult:
    return stub.build_here(config_of(source, output, near_duplicates))


def contents(root: Path) -> dict[str, bytes]:
    store = LocalStore(root)
    return {key: store.read(key) for key in store.keys()}


@pytest.fixture
def finalized(dataset: Built, tmp_path: Path) -> Path:
    """The nine rows built with `near_duplicates=0`, undisturbed."""
    output = tmp_path / "finalized"
    run_build(tmp_path / "src", output)
    return output


def test_finalisation_drops_them_as_the_command_does(dataset: Built, finalized: Path, tmp_path: Path) -> None:
    drop_near_duplicates(dataset.current, 0)
    store = LocalStore(finalized)
    assert verify(store).problems == []
    assert json.loads(store.read("dataset.json"))["clips"] == {
        "committed": 6,
        "rejected": {"black": 1, "frozen": 1, "near_duplicate": 4},
    }
    assert fates(store) == fates(dataset.store)
    assert {key: store.read(key) for key in store.keys("shards/")} == dataset.bytes_of("shards/")
    before = {key: store.local_path(key).stat().st_mtime_ns for key in store.keys()}
    run_build(tmp_path / "src", finalized)
    assert {key: store.local_path(key).stat().st_mtime_ns for key in store.keys()} == before, "done is done"
    with pytest.raises(ValueError, match="near_duplicates: 0 -> 3"):
        run_build(tmp_path / "src", finalized, 3)
    with pytest.raises(ValueError, match="must be null, to keep them, or 0 to 7 bits"):
        ShardsConfig(source="a", output="b", near_duplicates=8)


@pytest.mark.parametrize("operation", ["write", "write_file", "delete"])
def test_killed_anywhere_in_the_pass_the_same_command_ends_with_the_same_bytes(
    operation: str, finalized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each single write and removal of the finalisation once does not happen any more."""
    original = getattr(LocalStore, operation)
    deaths = 0
    for last in range(20):
        output = tmp_path / f"{operation}-{last}"
        left = last

        def dying(store: LocalStore, *arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("power cut")
            original(store, *arguments)

        config = config_of(tmp_path / "src", output)
        planned = make_plan(config, stub.ENCODER, LocalStore(output))
        for unit in range(planned.plan.units):
            Worker(BuildJob(config, planned.plan, planned.base), stub.cut).run(unit)
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, operation, dying)
            try:
                run_build(tmp_path / "src", output)
            except OSError:
                deaths += 1
        run_build(tmp_path / "src", output)
        assert contents(output) == contents(finalized)
        if left >= 0:
            break
    assert deaths >= 3
    assert left >= 0, "every operation had its turn"


def test_a_unit_that_is_built_again_loses_them_again(finalized: Path, tmp_path: Path) -> None:
    """Also when the run that built it was killed before its finalisation."""
    before, store = contents(finalized), LocalStore(finalized)
    store.delete("units/000001.json")
    assert run_build(tmp_path / "src", finalized).run.done == 1
    assert contents(finalized) == before
    store.delete("units/000001.json")
    job, missing = plan_build(config_of(tmp_path / "src", finalized), stub.ENCODER, store)
    assert missing == [1]
    stub.run_unit(job, 1)
    assert not store.exists("dataset.json"), "it does not describe the units any more"
    assert run_build(tmp_path / "src", finalized).run.done == 0
    assert contents(finalized) == before


def test_a_late_second_driver_changes_nothing(finalized: Path, tmp_path: Path) -> None:
    """It still builds a unit that the first one has finished, without its near-duplicates, meanwhile."""
    before = contents(finalized)
    config = config_of(tmp_path / "src", finalized)
    planned = make_plan(config, stub.ENCODER, LocalStore(finalized))
    for unit in range(planned.plan.units):
        Worker(BuildJob(config, planned.plan, planned.base), stub.cut).run(unit)
    assert contents(finalized) == before


# --- with further manifests and real videos --------------------------------------------------------------------------


def test_a_further_manifest_is_compared_with_what_is_there(dataset: Built, tmp_path: Path) -> None:
    drop_near_duplicates(dataset.current, 0)
    more = tmp_path / "more"
    more.mkdir()
    for name, text in (("x", "clip 600"), ("y", "clip 700")):
        (more / f"{name}.mp4").write_text(text)
        (more / f"{name}.txt").write_text("some caption")
    dataset.build(more, append=True)
    assert drop_near_duplicates(dataset.current, 0)[:2] == (1, 8)
    assert verify(dataset.store).problems == []
    assert fates(dataset.store)["x.mp4"]["reason"] == "near_duplicate"
    assert fates(dataset.store)["g.mp4"]["fate"] == "committed"


def test_a_video_encoded_again_is_alike_and_another_one_is_not(tmp_path: Path) -> None:
    clip = ClipConfig(short_side=128, min_short_side=64, crf=23)
    again = tmp_path / "again.mkv"
    words = ["-i", str(real_video("bikes.mp4")), "-an", "-vf", "scale=-2:200", "-crf", "30", str(again)]
    subprocess.run(["ffmpeg", "-loglevel", "error", *words], check=True)
    paths = (real_video("bikes.mp4"), again, real_video("bigbuckbunny.mp4"))
    cut = [cut_clips(path, config=clip).clips for path in paths]
    hashes = np.array([int(item.phash, 16) for clips in cut for item in clips], np.uint64)
    rows = np.array([row for row, clips in enumerate(cut) for _ in clips], np.int64)
    found = find_alike(hashes, rows, 3)
    first = len(cut[0])
    assert len(cut[1]) == first >= 2
    assert found.of.tolist() == [-1] * first + list(range(first)) + [-1] * len(cut[2])
