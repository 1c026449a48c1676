"""A proof of latents finds what was changed, even where every checksum was made to fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from data_pipeline.dataset.finalize import finalize, status
from data_pipeline.dataset.index import latent_rows, unit_index
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.shard_writer import ShardWriter
from data_pipeline.dataset.tar import parse_members
from data_pipeline.dataset.units import CommittedUnit, index_entry, read_unit, unit_key
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.latents_dataset import make_clips, settings_of, write_latents


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two units, the second one with samples of the training split alone."""
    write_latents(tmp_path / "latents", [make_clips(2, split="val"), make_clips(3)], settings_of())
    return LocalStore(tmp_path / "latents")


def forge(store: LocalStore, scratch: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of the first sample of unit 1, and all checksums, sizes and places with them."""
    scratch.mkdir()
    unit = read_unit(Dataset.open(store), 1)
    writer = ShardWriter(1, 10**9, store, scratch, ".safetensors")
    samples = latent_rows(unit.index)
    for number, sample in enumerate(samples):
        raw = store.read(unit.record.shards[0].name, sample.offset, sample.size)
        members = parse_members(raw, sample.key)
        payload = members["safetensors"]
        if number == 0:
            tensors = safetensors.torch.load(payload)
            change(tensors)
            payload = safetensors.torch.save(tensors)
        place = writer.add(
            sample.key, sample.split, description=members["json"], payload=payload, caption=members["txt"]
        )
        for name in ("offset", "size", "video_offset", "video_size", "crc32"):
            setattr(sample, name, getattr(place, name))
    writer.close()
    commit(store, unit, tuple(writer.shards), unit_index(samples, unit.index.schema))
    finalize(Dataset.open(store))


def commit(store: LocalStore, unit: CommittedUnit, shards: tuple[ShardEntry, ...], index: bytes) -> None:
    store.write(unit.record.index.name, index)
    record = replace(unit.record, shards=shards, index=index_entry(unit.record.index.name, index))
    store.write(unit_key(unit.unit), record.to_bytes())


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["dynamics_h"]


def shift(tensors: dict[str, Tensor]) -> None:
    tensors["structure"] = tensors["structure"] + 1e-3


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors["structure"][0, 0, 0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shift, "unit 1: its sums are not those of the latents in its shards"),
        (drop, "unit 1: sample train-00000-0000-f000000 has tensors of the shapes"),
        (spoil, "unit 1: sample train-00000-0000-f000000 has values that are infinite or no number"),
    ],
)
def test_other_tensors_are_found_though_every_checksum_fits(
    store: LocalStore, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    assert verify(store).problems == []
    forge(store, tmp_path / "scratch", change)
    found = verify(store).problems
    assert len(found) == 1
    assert found[0].startswith(message)
    assert verify(store, contents=False).problems == [], "without reading the shards it cannot be seen"


def statistics(described: dict[str, Any]) -> None:
    described["latents"]["statistics"]["structure"]["mean"][0] += 1e-9


def devices(described: dict[str, Any]) -> None:
    described["latents"]["devices"] = {"another": 2}


def model(described: dict[str, Any]) -> None:
    described["latents"]["model"]["weights"] = "1" * 64


@pytest.mark.parametrize("edit", [statistics, devices, model])
def test_a_description_that_the_records_do_not_give_is_found(
    store: LocalStore, edit: Callable[[dict[str, Any]], None]
) -> None:
    described = json.loads(store.read("dataset.json"))
    edit(described)
    store.write("dataset.json", json.dumps(described).encode())
    (problem,) = verify(store).problems
    assert "dataset.json: 'latents' is not what the commit records say" in problem


def test_status_counts_units_and_clips(store: LocalStore) -> None:
    assert status(store).endswith("2 of 2 units committed (100.0 %) of 5 clips; complete")
    store.delete("units/000001.json")
    assert status(store).endswith("1 of 2 units committed (50.0 %) of 5 clips; in work or interrupted")
