"""Latents by number and by key, for other people's code: torch's DataLoader, plain NumPy, local and on a store."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.latent_tensors import TENSORS
from data_pipeline.read.latent_archive import open_latents
from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.latent_loader import LatentLoader
from data_pipeline.read.normalization import Normalization, constant_channels
from data_pipeline.read.two_tries import UnreadableSample
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import write_other_index
from tests.data_pipeline.latents_dataset import make_clips, settings_of, write_latents
from tests.data_pipeline.read.latent_reading import (
    TRAIN,
    damage,
    index_columns,
    latent_config,
    stored_samples,
    write,
)
from tests.data_pipeline.read.loading import upload

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("latents"))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, latents: Path, moto_bucket: str, tmp_path: Path) -> dict[str, str]:
    """Where the dataset is, as keyword arguments."""
    if request.param == "folder":
        return {"place": str(latents)}
    uri = f"s3://{moto_bucket}/{tmp_path.name}"
    upload(latents, uri)
    return {"place": uri, "cache_dir": str(tmp_path / "cache")}


def test_items_are_what_is_stored(place: dict[str, str], latents: Path) -> None:
    stored = stored_samples(latents)
    dataset = LatentDataset(**place)  # type: ignore[arg-type]
    keys, splits = index_columns(latents, "key", "split")
    assert dataset.keys == [key for key, split in zip(keys, splits, strict=True) if split == "train"]
    assert len(dataset) == len(dataset.keys) == TRAIN
    for number, key in enumerate(dataset.keys):
        item = dataset[number]
        assert item.keys() == {"structure", "dynamics", "caption", "label", "key"}
        assert (item["key"], item["caption"], item["label"]) == (key, stored[key].caption, stored[key].label)
        assert torch.equal(item["structure"], stored[key].structure)
        assert torch.equal(item["dynamics"], stored[key].dynamics)
        assert torch.equal(dataset[key]["structure"], dataset.by_key(key)["structure"])
    assert torch.equal(dataset[-1]["structure"], stored[dataset.keys[-1]].structure)
    with pytest.raises(IndexError):
        dataset[TRAIN]
    with pytest.raises(KeyError):
        dataset.by_key("nobody")
    assert len(LatentDataset(**place, split="val", mirrored=False)) == 4  # type: ignore[arg-type]


def test_an_archive_gives_arrays_by_key(place: dict[str, str], latents: Path) -> None:
    stored = stored_samples(latents)
    archive = open_latents(**place)
    assert list(archive) == index_columns(latents, "key")[0]
    assert len(archive) == len(stored)
    for key, sample in stored.items():
        found = archive[key]
        assert found.keys() == {*TENSORS, "caption"}
        assert found["caption"] == sample.caption
        for name, tensor in sample.tensors.items():
            values = found[name]
            assert isinstance(values, np.ndarray)
            assert values.dtype == np.float32
            assert np.array_equal(values, tensor.numpy())
    assert "nobody" not in archive
    with pytest.raises(KeyError):
        archive["nobody"]


def test_an_archive_needs_no_torch(latents: Path) -> None:
    code = (
        "import sys; from data_pipeline.read.latent_archive import open_latents; "
        f"archive = open_latents({str(latents)!r}); key = next(iter(archive)); "
        "print(archive[key]['structure'].shape, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "(3, 4, 2, 2) False"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("place", "start"),
    [
        ("folder", "fork"),
        ("s3", "fork"),
        *(pytest.param(place, "spawn", marks=pytest.mark.slow) for place in ("folder", "s3")),
    ],
    indirect=["place"],
)
def test_a_data_loader_reads_it_in_processes(place: dict[str, str], start: str) -> None:
    dataset = LatentDataset(**place, sample=True, normalize=True)  # type: ignore[arg-type]
    loader = DataLoader(dataset, batch_size=8, num_workers=2, multiprocessing_context=start, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches = list(loader)
        assert [key for batch in batches for key in batch["key"]] == dataset.keys
        found = torch.cat([batch["dynamics"] for batch in batches])
        assert torch.equal(found, torch.stack([dataset[number]["dynamics"] for number in range(TRAIN)]))


def test_it_draws_as_the_loader_does(latents: Path) -> None:
    """The same key, epoch and seed: the same latents, whoever reads."""
    dataset = LatentDataset(str(latents), sample=True, seed=11)
    loader = LatentLoader(latent_config(latents, sample=True, global_batch=4))
    for number, batch in zip(range(40), loader.from_position(), strict=False):
        dataset.set_epoch((number * 4) // len(loader))
        for place, key in enumerate(batch.keys):
            assert torch.equal(dataset[key]["structure"], batch.structure[place])
            assert torch.equal(dataset[key]["dynamics"], batch.dynamics[place])


def test_a_copy_by_pickle_reads_the_same_and_refuses_another_dataset(latents: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "own")
    data = pickle.dumps(LatentDataset(str(root), normalize=True))
    assert len(data) < 20_000
    assert torch.equal(pickle.loads(data)[5]["structure"], LatentDataset(str(root), normalize=True)[5]["structure"])
    write_other_index(root)
    with pytest.raises(ValueError, match=r"has changed since it was opened.*open it again"):
        pickle.loads(data)


def test_a_damaged_sample_is_an_error_with_its_key(tmp_path: Path) -> None:
    root = write(tmp_path)
    (key,) = damage(root, [3])
    with pytest.raises(UnreadableSample, match=rf"{key} \(row 3, .*CRC-32") as caught:
        LatentDataset(str(root))[key]
    assert pickle.loads(pickle.dumps(caught.value)).bad == caught.value.bad
    with pytest.raises(UnreadableSample, match=key):
        open_latents(str(root))[key]


def test_normalising_and_the_way_back(latents: Path) -> None:
    described = read_dataset(LocalStore(latents)).latents
    assert described is not None
    normalization = Normalization.of(described)
    plain, scaled = LatentDataset(str(latents)), LatentDataset(str(latents), normalize=True)
    for number in range(0, TRAIN, 7):
        back = normalization.invert(scaled[number]["structure"], scaled[number]["dynamics"])
        for name, values in zip(("structure", "dynamics"), back, strict=True):
            torch.testing.assert_close(values, plain[number][name], rtol=1e-6, atol=1e-6)


def test_a_constant_channel_becomes_zero_and_comes_back(tmp_path: Path) -> None:
    """All values are 0 x noise, so each channel has deviation 0."""
    write_latents(tmp_path, [make_clips(3)], settings_of(LatentDtype.fp32), scale=0.0)
    described = read_dataset(LocalStore(tmp_path)).latents
    assert described is not None
    assert constant_channels(described) == {"structure": [0, 1, 2], "dynamics_w": [0, 1], "dynamics_h": [0, 1]}
    loader = LatentLoader(latent_config(tmp_path, normalize=True, global_batch=1, lanes=1))
    assert (
        "channels with deviation 0, divided by 1: dynamics_h [0, 1], dynamics_w [0, 1], structure [0, 1, 2]"
        in loader.describe()
    )
    batch = next(loader.from_position())
    assert not batch.structure.any()
    normalization = Normalization.of(described)
    assert not normalization.invert(batch.structure, batch.dynamics)[0].any()
