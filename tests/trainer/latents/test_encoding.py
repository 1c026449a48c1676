"""Encoded latents against the model itself on frames that the training's reader gives; the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import safetensors.torch
import torch
import webdataset

from data_pipeline.build.ray_cluster import start_local_cluster
from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.units import read_record
from data_pipeline.dataset.verify import verify
from data_pipeline.read.config import DataConfig
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.store.local import LocalStore
from model.vidtwin import VidTwin
from tests.trainer.latents.corpus import config_of, contents, encode_here
from trainer.latents.encoding import encode


def samples(store: LocalStore) -> dict[str, dict[str, Any]]:
    """Key -> sample, as webdataset reads them."""
    urls = [str(store.local_path(shard.name)) for shard in read_dataset(store).shards]
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}


def windows_of(clips: LocalStore, split: str, frames: int = 4) -> dict[tuple[str, int], torch.Tensor]:
    """(clip, first frame) -> uint8 [3, T, S, S], by the reader that evaluations use."""
    config = DataConfig(shards=str(clips.root), split=split, frames=frames, image_size=32, workers=0)
    found = {}
    for batch in iterate_clips(config, split, windows="all", batch_size=5):
        for video, key, start in zip(batch.video, batch.keys, batch.starts, strict=True):
            found[key, start] = video
    return found


def test_a_sample_is_what_the_model_makes_of_its_window(clips: LocalStore, model: Path, tmp_path: Path) -> None:
    words = ("stored.dtype=fp32", "stored.logvar=true", "windows.mirrored=true")
    result = encode_here(config_of(model, clips.root, tmp_path, *words))
    assert result.dataset is not None
    store, vidtwin = LocalStore(tmp_path), VidTwin.from_pretrained(model)
    found = samples(store)
    expected = {place: video for split in ("train", "val", "test") for place, video in windows_of(clips, split).items()}
    assert len(found) == 2 * len(expected) == result.dataset.samples > 20
    for sample in found.values():
        lineage = json.loads(sample["json"])
        video = expected[lineage["clip_key"], lineage["first_frame"]]
        pixels = (video.flip(-1) if lineage["mirrored"] else video)[None].float() / 127.5 - 1
        tensors = safetensors.torch.load(sample["safetensors"])
        with torch.no_grad():
            latents, posteriors = vidtwin.encode(pixels), vidtwin.posteriors(pixels)
        torch.testing.assert_close(tensors["structure"][None], latents.structure, rtol=0, atol=2e-6)
        dynamics = torch.cat([tensors["dynamics_w"], tensors["dynamics_h"]], dim=-1)
        torch.testing.assert_close(dynamics[None], latents.dynamics, rtol=0, atol=2e-6)
        logvar = tensors["structure_logvar"][None]
        torch.testing.assert_close(logvar, posteriors.structure.logvar, rtol=0, atol=2e-5)
        assert lineage["clip"]["label"] == lineage["label"] == lineage["clip"]["id"][:2]
        assert sample["txt"].decode() == f"a caption of {lineage['clip']['id']}"
        assert lineage["start"] == pytest.approx(lineage["clip"]["start"] + lineage["first_frame"] / 8, abs=1e-5)
    assert verify(store).problems == []


def test_statistics_are_those_of_the_training_samples(latents: LocalStore) -> None:
    described = read_dataset(latents).latents
    assert described is not None
    rows = [sample for sample in samples(latents).values() if json.loads(sample["json"])["split"] == "train"]
    for name, found in described.statistics.items():
        values = np.stack([safetensors.torch.load(row["safetensors"])[name].double().numpy() for row in rows])
        by_channel = values.swapaxes(0, 1).reshape(values.shape[1], -1)
        np.testing.assert_allclose(found.mean, by_channel.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(found.deviation, by_channel.std(axis=1), rtol=1e-9)


@pytest.mark.parametrize("words", [[], ["run.decoders=3"], ["run.progress_s=1"]])
def test_a_second_encoding_gives_the_same_bytes(
    clips: LocalStore, model: Path, latents: LocalStore, words: list[str], tmp_path: Path
) -> None:
    encode_here(config_of(model, clips.root, tmp_path, *words))
    assert contents(LocalStore(tmp_path)) == contents(latents)


def test_a_committed_unit_is_never_encoded_again(clips: LocalStore, model: Path, latents: LocalStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in latents.root.rglob("*")}
    result = encode_here(config_of(model, clips.root, latents.root))
    assert result.dataset == read_dataset(latents)
    assert {path: path.stat().st_mtime_ns for path in latents.root.rglob("*")} == before


def test_the_mirrored_twin_and_a_random_window_do_not_depend_on_other_clips(
    clips: LocalStore, model: Path, tmp_path: Path
) -> None:
    words = ["windows.choose=random", "windows.count=3", "windows.seed=7", "windows.frames=2"]
    encode_here(config_of(model, clips.root, tmp_path, *words))
    starts: dict[str, list[int]] = {}
    for sample in samples(LocalStore(tmp_path)).values():
        lineage = json.loads(sample["json"])
        assert lineage["frames"] == 2
        assert 0 <= lineage["first_frame"] <= lineage["clip"]["frames"] - 2
        starts.setdefault(lineage["clip_key"], []).append(lineage["first_frame"])
    assert all(len(set(found)) == 3 for found in starts.values())
    assert len({tuple(found) for found in starts.values()}) > len(starts) // 2, "each clip has draws of its own"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two cores and two GPUs, whatever the machine has."""
    start_local_cluster(2, 2)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["run.unit_cpus=1"], marks=pytest.mark.slow),  # tests/faults/test_encoding_killed.py does the same
        ["run.unit_cpus=0", "run.unit_gpus=1", "run.device=cpu"],
    ],
)
def test_actors_of_ray_give_the_same_bytes(
    cluster: None, clips: LocalStore, model: Path, latents: LocalStore, words: list[str], tmp_path: Path
) -> None:
    result = encode(config_of(model, clips.root, tmp_path, *words))
    assert result.run.failed == {}
    assert result.run.done == 3
    assert contents(LocalStore(tmp_path)) == contents(latents)
    assert read_dataset(LocalStore(tmp_path)).kind is LATENTS


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that torch can use")
def test_a_gpu_that_torch_cannot_use_fails_the_units(
    cluster: None, clips: LocalStore, model: Path, tmp_path: Path
) -> None:
    config = config_of(model, clips.root, tmp_path, "run.unit_cpus=0", "run.unit_gpus=1", "run.attempts=1")
    result = encode(config)
    assert result.dataset is None
    assert "run.device=auto with run.unit_gpus=1 needs a GPU" in result.run.failed[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that torch can use")
def test_a_gpu_that_this_machine_lacks_is_refused_before_anything_is_planned(
    clips: LocalStore, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the cluster of the other tests may be running
    with pytest.raises(ValueError, match=r"run\.unit_gpus=1 is more than the 0 GPUs .*; set run\.unit_gpus=0"):
        encode(config_of(model, clips.root, output, "run.unit_gpus=1"))
    assert not output.exists()


def test_the_device_is_on_record(latents: LocalStore) -> None:
    found = read_record(latents, 0).latents
    assert found is not None
    assert found.device == f"cpu {torch.backends.cpu.get_cpu_capability()}"
    described = read_dataset(latents).latents
    assert described is not None
    assert described.devices == {found.device: 3}
