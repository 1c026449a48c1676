"""How near generated clips lie to training clips, and how near held-out real clips lie, as the scale for it.

The distance is that of `trainer/latents/neighbours.py`, between normalised latents. A generator that repeats its
training clips makes samples that lie nearer to a training clip than any real clip of the same kind does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.normalization import Normalization
from model.config import VidTwinConfig
from trainer.generation.real_clips import TRAINING_SPLIT, RealClips
from trainer.generation.samples import Sample
from trainer.latents.named_latents import NamedLatents, latents_of_file, naming_damage
from trainer.latents.neighbours import features, nearest_points, points
from trainer.latents.sample_metadata import made_again

HELD_OUT = ("val", "test")
HELD_OUT_MOST = 2048
"""Held-out windows that are measured at most, spread evenly over the split."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest training latents of some clips.

    Attributes:
        names: of the clips.
        labels: of the clips.
        distances: squared, [N, k], nearest first.
        keys: of the training latents, by clip.
        classes: of the training latents, by clip.
    """

    names: list[str]
    labels: list[str]
    distances: Tensor
    keys: list[list[str]]
    classes: list[list[str]]


class Training:
    """The training latents, among which neighbours are looked for.

    Args:
        latents: dataset of latents.
    Raises:
        ValueError: it has no latents of the split train.
    """

    def __init__(self, latents: str) -> None:
        self.place = latents
        try:
            self.among = LatentDataset(latents, TRAINING_SPLIT, normalize=True)
        except ValueError as error:
            raise ValueError(f"--latents {latents}: {error}; encode clips of the split {TRAINING_SPLIT!r}") from error
        self.normalization = Normalization.of(self.among.description)

    def of_samples(
        self, samples: Sequence[Sample], config: VidTwinConfig, count: int, progress: Callable[[int], None] | None
    ) -> Neighbours:
        """The training clips nearest to generated ones.

        Raises:
            ValueError: latents of another shape, or without finite values.
        """
        found = [sample_latents(sample, config) for sample in samples]
        structure = torch.stack([item.structure for item in found]).float()
        dynamics = torch.stack([item.dynamics for item in found]).float()
        asked = points(*self.normalization.apply(structure, dynamics))
        for sample, values in zip(samples, asked, strict=True):
            if not torch.isfinite(values).all():
                raise ValueError(
                    made_again(f"{sample.file} has values too large to be normalised in fp32", sample.file)
                )
        return self._neighbours(
            asked, [item.name for item in samples], [item.label for item in samples], count, progress
        )

    def of_held_out(
        self, clips: RealClips, count: int, progress: Callable[[int], None] | None
    ) -> tuple[str, Neighbours] | None:
        """The training clips nearest to clips of a held-out split, with the split's name; None without such clips."""
        split = next((name for name in HELD_OUT if name in clips.splits()), None)
        if split is None or not clips.windows(split):
            return None
        held = LatentDataset(self.place, split, mirrored=False, normalize=True)
        total = len(held)
        some = [number * total // min(total, HELD_OUT_MOST) for number in range(min(total, HELD_OUT_MOST))]
        with naming_damage(self.place):
            items = held.__getitems__(some)
        names, labels = [str(item["key"]) for item in items], [str(item["label"]) for item in items]
        return split, self._neighbours(features(items), names, labels, count, progress)

    def _neighbours(
        self,
        asked: Tensor,
        names: list[str],
        labels: list[str],
        count: int,
        progress: Callable[[int], None] | None,
    ) -> Neighbours:
        with naming_damage(self.place):
            distances, numbers = nearest_points(asked, self.among, count, progress)
            wanted = sorted(set(numbers.flatten().tolist()))
            items = {number: self.among[number] for number in wanted}
        return Neighbours(
            names=names,
            labels=labels,
            distances=distances,
            keys=[[str(items[number]["key"]) for number in row] for row in numbers.tolist()],
            classes=[[str(items[number]["label"]) for number in row] for row in numbers.tolist()],
        )


def sample_latents(sample: Sample, config: VidTwinConfig) -> NamedLatents:
    """The latents in the file of a sample; raises ValueError as `latents_of_file`, with the remedy."""
    try:
        # The rate is not looked at here.
        found = list(latents_of_file(str(sample.file), config, fps=Fraction(1)))
    except ValueError as error:
        raise ValueError(made_again(str(error), sample.file)) from error
    if len(found) != 1:
        raise ValueError(made_again(f"{sample.file} holds {len(found)} videos and not one", sample.file))
    return found[0]


def memorisation(samples: Neighbours, held_out: tuple[str, Neighbours] | None, training: int) -> dict[str, Any]:
    """The distances to the nearest training latents, as JSON has them.

    Args:
        samples, held_out: their neighbours.
        training: how many training latents there are.
    Returns:
        `distance` says what is measured; `samples` and `held_out` hold `count`, `least`, `quantile_05` and `median`;
        `as_near_as_05` counts the samples that lie as near to a training clip as the nearest 5 % of the held-out clips;
        of new clips of the same kind that would be about 5 %.
    """
    mine = samples.distances[:, 0]
    order = mine.argsort().tolist()
    found: dict[str, Any] = {
        "distance": "mean squared difference of the normalised structures plus that of the dynamics; 0: the same",
        "training_latents": training,
        "samples": _spread(mine),
        "held_out": None,
        "as_near_as_05": None,
        "nearest": [
            {"sample": samples.names[place], "training": samples.keys[place], "distances": _list(samples, place)}
            for place in order
        ],
    }
    if held_out is not None:
        split, real = held_out
        found["held_out"] = {"split": split, **_spread(real.distances[:, 0])}
        found["as_near_as_05"] = int((mine <= real.distances[:, 0].quantile(0.05)).sum())
    return found


def _list(found: Neighbours, place: int) -> list[float]:
    distances: list[float] = found.distances[place].tolist()
    return distances


def _spread(distances: Tensor) -> dict[str, Any]:
    return {
        "count": len(distances),
        "least": float(distances.min()),
        "quantile_05": float(distances.quantile(0.05)),
        "median": float(distances.quantile(0.5)),
    }
