"""A tiny training on latents that are made here, and their loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from data_pipeline.read.loader import Position
from model.dit_config import LatentSpace
from model.latent_statistics import ChannelStatistics, Statistics
from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config
from trainer.diffusion.data import GivenBatch
from trainer.distributed import Ranks

SPACE = LatentSpace(
    structure_shape=(3, 4, 2, 2), dynamics_shape=(2, 4, 4), classes=("a", "b", "c"), text_width=6, text_empty_tokens=2
)
STATISTICS: Statistics = {
    "structure": ChannelStatistics((0.5, -1.0, 2.0), (2.0, 0.25, 1.5)),
    "dynamics_w": ChannelStatistics((3.0, -4.0), (0.5, 8.0)),
    "dynamics_h": ChannelStatistics((-1.0, 10.0), (4.0, 0.125)),
}
EMPTY_CAPTION = torch.linspace(-1, 1, 12).reshape(2, 6)
STEPS, GLOBAL_BATCH, EPOCH = 6, 4, 3
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "precision": "fp32",
    "dit.width": 24,
    "dit.depth": 2,
    "dit.heads": 2,
    "dit.class_width": 5,
    "data.shards": "unused",
    "data.global_batch": GLOBAL_BATCH,
    "optim.dit.name": "adamw",
    "optim.dit.lr": 2e-3,
    "optim.dit.warmup": 2,
    "optim.dit.eps": 1e-6,
    "optim.dit.weight_decay": 1e-2,
    "optim.clip": 0.5,
    "ema.decay": 0.75,
    "zero.persistence_threshold": 0,
}


def tiny_config(output: str, *words: str) -> DiffusionConfig:
    """A run of `STEPS` steps; `words` are overrides."""
    return load_config(
        DiffusionConfig, [], [f"output={output}", *(f"{key}={value}" for key, value in SETTINGS.items()), *words]
    )


class Latent(GivenBatch):
    """A batch of latents with everything that a condition may want."""

    def part(self, some: slice) -> Latent:
        """Some of its clips."""
        tensors = (self.structure, self.dynamics, self.text, self.text_mask)
        structure, dynamics, text, mask = (values[some] for values in tensors)
        return Latent(structure, dynamics, self.labels[some], text, mask, self.keys[some], self.position)

    def share(self, rank: int, ranks: int) -> Latent:
        """A rank's clips."""
        size = len(self.keys) // ranks
        return self.part(slice(rank * size, (rank + 1) * size))


def latents(number: int, clips: int = GLOBAL_BATCH, name: str = "train") -> Latent:
    """A batch that follows from its number; each class has a mean of its own, so that there is something to learn."""
    source = torch.Generator().manual_seed(1000 * len(name) + number)
    classes = [(number + place) % 3 for place in range(clips)]
    means = torch.tensor([-1.2, 0.0, 1.2])[classes]
    drawn = [
        0.3 * torch.randn(clips, *shape, generator=source) for shape in (SPACE.structure_shape, SPACE.dynamics_shape)
    ]
    lengths = torch.tensor([1 + (number + place) % 3 for place in range(clips)])
    structure = drawn[0] + means.reshape(-1, 1, 1, 1, 1)
    along_w, along_h = (drawn[1] - means.reshape(-1, 1, 1, 1)).chunk(2, dim=-1)
    return Latent(
        spread(structure, "structure"),
        torch.cat([spread(along_w, "dynamics_w"), spread(along_h, "dynamics_h")], dim=-1),
        [SPACE.classes[number] for number in classes],
        torch.randn(clips, 3, SPACE.text_width, generator=source),
        torch.arange(3) < lengths[:, None],
        [f"{name}/{number}/{place}" for place in range(clips)],
    )


def spread(values: Tensor, kind: str) -> Tensor:
    """Values of mean 0 and deviation 1 as latents that have the statistics."""
    shape = (-1, *[1] * (values.dim() - 2))
    mean, deviation = (torch.tensor(numbers).reshape(shape) for numbers in vars(STATISTICS[kind]).values())
    return values * deviation + mean


class LatentLoader:
    """Endless batches of one rank; an epoch has `EPOCH` batches, the same ones again in each."""

    identity: Mapping[str, Any] = {"epoch": EPOCH}
    shared_bytes = 0

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def continue_from(self, saved: Mapping[str, Any], position: Position) -> str:
        assert saved == self.identity
        return ""

    def from_position(
        self, position: Position | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[Latent]:
        position = position or Position()
        number = position.epoch * EPOCH + position.consumed
        while True:
            batch = latents(number % EPOCH).share(self.ranks.rank, self.ranks.world_size)
            number += 1
            batch.position = Position(*divmod(number, EPOCH))
            yield batch

    def close(self) -> None:
        """There are no workers."""


class TinyLatents:
    """The data of a run (see `trainer.diffusion.data.LatentData`): two batches of two clips are held out."""

    def __init__(self, config: DiffusionConfig, ranks: Ranks) -> None:
        self.space, self.statistics, self.empty_caption = SPACE, STATISTICS, EMPTY_CAPTION
        self.loader = LatentLoader(ranks)
        self.held_out = [latents(number, 2, "val").share(ranks.rank, ranks.world_size) for number in range(2)]
        self.held_out_clips = 4

    def describe(self) -> list[str]:
        return ["made-up latents"]
