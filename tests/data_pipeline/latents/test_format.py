"""The stored form of latents against webdataset, safetensors' own reader, torch's rounding and NumPy's statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import webdataset

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.description import DatasetFile, read_dataset
from data_pipeline.dataset.kind import CLIPS, LATENTS
from data_pipeline.dataset.latent_tensors import MEANS, latent_key, read_tensors
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.tar import ClipError
from data_pipeline.dataset.units import read_record
from data_pipeline.dataset.verify import verify
from data_pipeline.latents.packing import UnfitLatents, rounded_latents
from tests.data_pipeline.latents_dataset import SHAPES, MadeUpLatents, make_clips, settings_of, write_latents

TORCH = {LatentDtype.fp32: torch.float32, LatentDtype.fp16: torch.float16, LatentDtype.bf16: torch.bfloat16}


def written_samples(latents: MadeUpLatents) -> list[dict[str, Any]]:
    """Every sample as webdataset gives it."""
    urls = [str(latents.store.local_path(shard.name)) for shard in latents.description.shards]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


@pytest.mark.parametrize("dtype", list(LatentDtype))
def test_webdataset_reads_every_sample_and_safetensors_its_tensors(tmp_path: Path, dtype: LatentDtype) -> None:
    settings = settings_of(dtype, logvar=True, mirrored=True, shard_bytes=30_000)
    latents = write_latents(tmp_path, [make_clips(5), make_clips(3, split="val")], settings)
    assert verify(latents.store).problems == []
    samples = {sample["__key__"]: sample for sample in written_samples(latents)}
    assert samples.keys() == latents.tensors.keys()
    for key, tensors in latents.tensors.items():
        stored = safetensors.torch.load(samples[key]["safetensors"])
        assert stored.keys() == tensors.keys()
        own = read_tensors(samples[key]["safetensors"])
        for name, tensor in tensors.items():
            assert stored[name].dtype == TORCH[dtype]
            assert torch.equal(stored[name], tensor.to(TORCH[dtype]))
            assert np.array_equal(own[name], stored[name].float().numpy())
        description = json.loads(samples[key]["json"])
        assert key == latent_key(description["clip_key"], description["first_frame"], description["mirrored"])
        assert description["clip_end"] - description["clip_start"] == 1.0, "8 frames at 8 a second"
        assert samples[key]["txt"].decode().startswith("caption ")


def test_statistics_are_numpys_over_the_training_split_alone(tmp_path: Path) -> None:
    clips = [make_clips(7), [*make_clips(4, split="val"), *make_clips(2, split="test")]]
    latents = write_latents(tmp_path, clips, settings_of(LatentDtype.fp16), scale=3.0)
    described = latents.description.latents
    assert described is not None
    rounded = [
        {name: tensor.half().double().numpy() for name, tensor in tensors.items()}
        for key, tensors in latents.tensors.items()
        if key.startswith("train")
    ]
    assert list(described.statistics) == list(MEANS)
    for name, found in described.statistics.items():
        values = np.stack([sample[name] for sample in rounded]).swapaxes(0, 1).reshape(SHAPES[name][0], -1)
        assert found.values == values.shape[1]
        np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(found.deviation, values.std(axis=1), rtol=1e-9)


@pytest.mark.parametrize("dtype", [LatentDtype.fp16, LatentDtype.bf16])
def test_rounding_errors_are_those_of_all_stored_values(tmp_path: Path, dtype: LatentDtype) -> None:
    latents = write_latents(tmp_path, [make_clips(4), make_clips(3, split="val")], settings_of(dtype, logvar=True))
    described = latents.description.latents
    assert described is not None
    for name, found in described.rounding.items():
        exact = torch.stack([tensors[name] for tensors in latents.tensors.values()])
        lost = (exact.double() - exact.to(TORCH[dtype]).double()).numpy()
        assert found.largest == np.abs(lost).max()
        assert found.rms == pytest.approx(np.sqrt(np.mean(lost**2)), rel=1e-12)


def test_fp32_loses_nothing(tmp_path: Path) -> None:
    described = write_latents(tmp_path, [make_clips(2)]).description.latents
    assert described is not None
    assert {(found.largest, found.rms) for found in described.rounding.values()} == {(0.0, 0.0)}


def test_values_that_cannot_be_stored_are_refused() -> None:
    wide = {"structure": torch.tensor([1.0, -70000.0])}
    with pytest.raises(UnfitLatents, match=r"value of size 7e\+04, more than fp16 can hold") as caught:
        rounded_latents(wide, LatentDtype.fp16)
    assert caught.value.reason == "too_large"
    assert rounded_latents(wide, LatentDtype.bf16).lost["structure"].tolist() == [0.0, 144.0], (
        "bf16 has 70144 = 137 * 512 there"
    )
    with pytest.raises(UnfitLatents, match="no number"):
        rounded_latents({"structure": torch.tensor([float("nan")])}, LatentDtype.fp32)


def test_bytes_that_are_no_latents_are_refused() -> None:
    with pytest.raises(ClipError, match="holds no readable safetensors"):
        read_tensors(b"\x00" * 20)
    with pytest.raises(ClipError, match="tensor x of type F64"):
        read_tensors(safetensors.torch.save({"x": torch.zeros(2, dtype=torch.float64)}))


def test_records_and_description_read_back(tmp_path: Path) -> None:
    latents = write_latents(tmp_path, [make_clips(3)], settings_of(LatentDtype.bf16))
    raw = latents.store.read("units/000000.json")
    assert read_record(latents.store, 0).to_bytes() == raw
    assert read_dataset(latents.store) == latents.description
    assert read_dataset(latents.store).to_bytes() == latents.store.read("dataset.json")


def test_readers_of_clips_refuse_latents_and_the_other_way_round(tmp_path: Path) -> None:
    store = write_latents(tmp_path, [make_clips(1)]).store
    with pytest.raises(ValueError, match=r"is a dataset of latents; give one of clips, the folder that .*build_shards"):
        DatasetFile.load(store)
    assert DatasetFile.load(store, LATENTS).samples == 1
    with pytest.raises(ValueError, match="is a dataset of latents; name one of clips"):
        Dataset.open(store, CLIPS)
