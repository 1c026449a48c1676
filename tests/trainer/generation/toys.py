"""A corpus of real clips with its latents and its autoencoder, and samples made of its training latents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data_pipeline.read.latent_dataset import LatentDataset
from tests.trainer.latents.corpus import Row, build_clips, config_of, encode_here, save_model
from trainer.latents.sample_metadata import SampleMetadata
from trainer.sampling.generate import SAMPLES

ROWS: tuple[Row, ...] = (
    ("bikes", "bikes.mp4", "train"),
    ("phone", "carphone_pristine.mp4", "train"),
    ("bi-bunny", "bigbuckbunny.mp4", "val"),
    ("ph-bunny", "bigbuckbunny.mp4", "val"),
)
"""The labels are `bi` and `ph`. The held-out clips show what no training clip shows."""
SETTINGS = {"weights": "f" * 64, "autoencoder": "", "seed": 3, "steps": 50, "guidance": 5.0}


def make_corpus(folder: Path) -> Path:
    """Write `model`, `shards` and `latents` below `folder`."""
    save_model(folder / "model")
    build_clips(folder, ROWS)
    encode_here(config_of(folder / "model", folder / "shards", folder / "latents", "encode.batch=8"))
    return folder


def write_samples(folder: Path, samples: Sequence[tuple[str, Mapping[str, Tensor]]], autoencoder: str = "") -> Path:
    """Write samples with their labels as the sampler does.

    Args:
        samples: label, and `structure` and `dynamics` of each.
        autoencoder: digest of the weights of the one whose latents they are; empty: they do not say it.
    """
    folder.mkdir(parents=True)
    (folder / SAMPLES.name).write_text(json.dumps(SETTINGS | {"autoencoder": autoencoder}))
    for number, (label, latents) in enumerate(samples):
        tensors = {name: latents[name].contiguous() for name in ("structure", "dynamics")}
        metadata = SampleMetadata(label=label, number=number, autoencoder=autoencoder)
        save_file(tensors, folder / f"sample-{number:05d}.safetensors", metadata.to_metadata())
    return folder


def stored(latents: Path, split: str) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Label and latents of each clip of a split."""
    dataset = LatentDataset(str(latents), split)
    return [(dataset[number]["label"], dataset[number]) for number in range(len(dataset))]


class Colours(nn.Module):
    """Stands in for I3D: it is called in the same way, and its features are easy to compute by hand."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        """Mean colour of a clip on the scale 0 to 255, [B, 3]."""
        return video.mean(dim=[2, 3, 4])


class Brightness(nn.Module):
    """Stands in for a classifier of two classes: bright clips are of the second one."""

    def forward(self, video: Tensor) -> Tensor:
        """Logits [B, 2]."""
        light = video.mean(dim=[1, 2, 3, 4])
        return torch.stack([0.5 - light, light - 0.5], dim=1)


def script(network: nn.Module, file: Path) -> Path:
    """Write a network as TorchScript."""
    torch.jit.script(network).save(str(file))  # type: ignore[no-untyped-call]
    return file
