"""Verification against every kind of damage, and the remedy that it names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub
from tests.data_pipeline.build.stub import config_of, contents


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub.write_sources(tmp_path_factory.mktemp("sources"), 24)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A dataset of made-up clips in six units."""
    store = LocalStore(tmp_path_factory.mktemp("undisturbed"))
    assert stub.build_here(config_of(source, store.root)).run.done == 6
    return store


def flip_a_byte(store: LocalStore) -> str:
    path = store.local_path("shards/000001-000.tar")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return r"unit 1: shards/000001-000\.tar is not what was committed.*delete .*units/000001\.json and run"


def remove_a_shard(store: LocalStore) -> str:
    store.delete("shards/000002-000.tar")
    return r"unit 2: shards/000002-000\.tar is missing"


def cut_a_shard(store: LocalStore) -> str:
    path = store.local_path("shards/000002-000.tar")
    path.write_bytes(path.read_bytes()[:-512])
    return r"unit 2: shards/000002-000\.tar has \d+ bytes, committed were \d+"


def edited(store: LocalStore, change: Callable[[dict[str, Any]], None]) -> None:
    path = store.local_path("units/000003.json")
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def lose_a_row(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"].pop(0))
    return r"unit 3: row 13 \('v012\.mp4'\) has no fate"


def double_a_row(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"].insert(0, record["rows"][0]))
    return r"unit 3: row 13 \('v012\.mp4'\) is recorded 1 times too often"


def invent_a_clip(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"][0].update(clips=5))
    return r"unit 3: row 13 is recorded with 5 clips, the index has 2"


def change_a_reason(store: LocalStore) -> str:
    def quarantine(record: dict[str, Any]) -> None:
        row = record["rows"][3]
        row["fate"], row["error"], row["detail"] = "quarantined", "missing", "there is no such file"
        for name in ("reason", "measured", "rejected"):
            row.pop(name, None)

    edited(store, quarantine)
    return r"dataset\.json: 'rows' is not what the commit records say"


def edit_a_measurement(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"][2]["rejected"][0]["measured"].update(value=9))
    return r"dataset\.json: 'records' is not what the commit records say"


def lose_a_record(store: LocalStore) -> str:
    store.delete("units/000005.json")
    return r"1 of 6 units are not committed \(first: 5\)"


def damage_the_index(store: LocalStore) -> str:
    path = store.local_path("index.arrow")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return r"index\.arrow is not the index of these shards; run the same command of launch/build_shards\.py again"


def damage_a_unit_index(store: LocalStore) -> str:
    store.write("units/000001.arrow", b"nonsense")
    return r"units/000001\.json cannot be used: units/000001\.arrow is not the index"


def edit_the_totals(store: LocalStore) -> str:
    path = store.local_path("dataset.json")
    dataset = json.loads(path.read_bytes())
    dataset["rows"]["committed"] += 1
    path.write_text(json.dumps(dataset))
    return r"dataset\.json: 'rows' is not what"


def add_a_stray_shard(store: LocalStore) -> str:
    store.write("shards/000099-000.tar", b"")
    return r"shards/000099-000\.tar belongs to no committed unit"


DAMAGES = [
    flip_a_byte, remove_a_shard, cut_a_shard, lose_a_row, double_a_row, invent_a_clip, change_a_reason,
    edit_a_measurement, lose_a_record, damage_the_index, damage_a_unit_index, edit_the_totals, add_a_stray_shard,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_verification_finds_the_damage_and_names_the_remedy(
    damage: Callable[[LocalStore], str], undisturbed: LocalStore, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.root, tmp_path / "copy")
    store = LocalStore(tmp_path / "copy")
    assert verify(store).problems == []
    expected = damage(store)
    problems = verify(store).problems
    assert any(re.search(expected, problem) for problem in problems), problems


def test_following_the_remedy_mends_the_dataset(source: Path, undisturbed: LocalStore, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.root, tmp_path / "copy")
    store = LocalStore(tmp_path / "copy")
    for damage in (flip_a_byte, remove_a_shard, lose_a_row):
        damage(store)
    for problem in verify(store).problems:
        if match := re.search(r"delete (\S+) and run", problem):
            Path(match[1]).unlink(missing_ok=True)
    assert stub.build_here(config_of(source, store.root)).run.done == 3
    assert contents(store) == contents(undisturbed)
    assert verify(store).problems == []


def test_verifying_something_else_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no plan\.json"):
        verify(LocalStore(tmp_path))
