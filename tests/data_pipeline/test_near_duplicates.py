"""The search against comparing everything with everything; the pass against the files of a verified dataset."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.clip_config import ClipConfig
from data_pipeline.clips import cut_clips
from data_pipeline.ledger import Ledger
from data_pipeline.near_duplicates import drop_near_duplicates, find_alike
from data_pipeline.storage import LocalStore
from data_pipeline.verify import verify
from launch import drop_duplicates
from tests.data_pipeline.test_grow import Dataset
from tests.data_pipeline.videos import real_video


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
def dataset(tmp_path: Path) -> Dataset:
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
    built = Dataset(tmp_path)
    built.build(source)
    return built


def fates(store: LocalStore) -> dict[str, Any]:
    return {
        fate["id"]: fate for key in store.list("units/") if key.endswith(".json")
        for fate in json.loads(store.read(key))["rows"]
    }  # fmt: skip


def test_the_first_of_each_kind_stays_and_the_ledger_says_where(dataset: Dataset) -> None:
    store = dataset.store
    samples, before = dataset.samples(), dataset.bytes_of("")
    assert drop_near_duplicates(store, dataset.plan, 0, write=False) == (4, 10)
    assert dataset.bytes_of("") == before, "counting changes nothing"
    assert drop_duplicates.main([str(store.root), "--distance", "0"]) == 0
    assert verify(store).problems == []
    left = dataset.samples()
    assert sorted(key[0] for key in left) == ["a", "a", "b", "f", "f", "g"]
    assert all(samples[key] == data for key, data in left.items())
    ledger = Ledger.of_dataset(json.loads(store.read("dataset.json")))
    assert (ledger.input, ledger.accounted, ledger.committed) == (9, 9, 4)
    assert ledger.rejected == {"black": 1, "near_duplicate": 3}
    assert ledger.clips_rejected == {"black": 1, "frozen": 1, "near_duplicate": 4}
    (second,) = [item for item in fates(store)["c.mp4"]["rejected"] if item["clip"] == 1]
    assert second["measured"] == {"bits": 0, "of_row": 1, "of_clip": 1}
    assert (second["start"], second["end"]) == (1.0, 2.0)
    assert fates(store)["h.mp4"]["rejected"][0]["measured"]["of_row"] == 2
    after = dataset.bytes_of("")
    assert drop_near_duplicates(store, dataset.plan, 0) == (0, 6)
    assert dataset.bytes_of("") == after, "the same pass again finds nothing"


def test_interrupted_it_is_completed_by_the_same_call(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Dataset(tmp_path / "other")
    other.build(tmp_path / "src")
    drop_near_duplicates(other.store, other.plan, 0)
    original = LocalStore.write

    def dying(store: LocalStore, key: str, data: bytes) -> None:
        if key == "units/000001.json":
            raise OSError("power cut")
        original(store, key, data)

    monkeypatch.setattr(LocalStore, "write", dying)
    with pytest.raises(OSError, match="power cut"):
        drop_near_duplicates(dataset.store, dataset.plan, 0)
    monkeypatch.undo()
    drop_near_duplicates(dataset.store, dataset.plan, 0)
    assert verify(dataset.store).problems == []
    assert dataset.samples() == other.samples()
    assert fates(dataset.store) == fates(other.store)


def test_a_further_manifest_is_compared_with_what_is_there(dataset: Dataset, tmp_path: Path) -> None:
    drop_near_duplicates(dataset.store, dataset.plan, 0)
    more = tmp_path / "more"
    more.mkdir()
    for name, text in (("x", "clip 600"), ("y", "clip 700")):
        (more / f"{name}.mp4").write_text(text)
        (more / f"{name}.txt").write_text("some caption")
    dataset.build(more, append=True)
    assert drop_near_duplicates(dataset.store, dataset.plan, 0) == (1, 8)
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
