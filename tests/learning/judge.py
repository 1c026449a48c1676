"""Which class a sample shows: that of the held-out window whose latents are nearest."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.normalization import Normalization


class Judge:
    """Knows the held-out windows of a dataset of latents, with their true classes.

    It measures between latents that are normalised by the statistics of the dataset. It was never told of a window that
    trains.
    """

    def __init__(self, latents: Path) -> None:
        held_out = LatentDataset(str(latents), "val", normalize=True)
        items = held_out.__getitems__(range(len(held_out)))
        self._normalization = Normalization.of(held_out.description)
        self._points = torch.stack([_point(item["structure"], item["dynamics"]) for item in items])
        self._classes = [item["label"] for item in items]

    def seen(self, structure: Tensor, dynamics: Tensor) -> str:
        """The class of normalised latents [d_S, n_q, h, w] and [d_D, f, w + h]."""
        distances = (self._points - _point(structure, dynamics)).square().sum(1)
        return str(self._classes[int(distances.argmin())])

    def right_of_windows(self, latents: Path) -> tuple[int, int]:
        """How many training windows have the class that the judge sees in them, and how many there are."""
        trained = LatentDataset(str(latents), "train", normalize=True)
        items = trained.__getitems__(range(len(trained)))
        return sum(self.seen(item["structure"], item["dynamics"]) == item["label"] for item in items), len(items)

    def right_of_samples(self, folder: Path) -> tuple[int, int]:
        """How many samples show the class that was asked for, and how many there are."""
        right, files = 0, sorted(folder.glob("*.safetensors"))
        for file in files:
            with safe_open(file, "pt") as opened:
                asked = json.loads(opened.metadata()["sample"])["label"]
                latents = opened.get_tensor("structure")[None], opened.get_tensor("dynamics")[None]
            structure, dynamics = self._normalization.apply(*latents)
            right += self.seen(structure[0], dynamics[0]) == asked
        return right, len(files)


def _point(structure: Tensor, dynamics: Tensor) -> Tensor:
    """Both latents count alike, whatever their numbers of values (as in `trainer.latents.neighbours`)."""
    return torch.cat([part.double().flatten() / part.numel() ** 0.5 for part in (structure, dynamics)])
