"""The data of a training on latents, opened before the network is built (see `method.MethodBuilder`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from model.latent_statistics import check_statistics
from trainer.config.diffusion import DiffusionConfig
from trainer.diffusion.data import LatentBatch, LatentData
from trainer.diffusion.method import LatentDiffusion
from trainer.diffusion.same_latents import check_same_latents
from trainer.distributed import Ranks
from trainer.method import Loader

OpenData = Callable[[DiffusionConfig, Ranks], LatentData]


class DiffusionBuilder:
    """Opens the latents to train from and to validate on; `build` makes the network.

    Args:
        open_data: opens the latents; `functools.partial` binds it where `trainer.run.run` wants a builder.
    Raises:
        ValueError: the global batch does not divide among the ranks, the network does not fit the latents, or a
            validation has no held-out clips.
    """

    def __init__(self, config: DiffusionConfig, ranks: Ranks, open_data: OpenData) -> None:
        config.split_batch(ranks.world_size)
        self.config, self.ranks = config, ranks
        self.data = open_data(config, ranks)
        space = self.data.space
        space.grids(config.dit)
        space.check_condition(config.dit)
        check_statistics(self.data.statistics, space)
        if config.validation.every and not self.data.held_out_clips:
            raise ValueError(
                f"validation.every={config.validation.every} wants held-out clips, and there are none; set "
                "validation.every=0"
            )

    @property
    def loader(self) -> Loader[LatentBatch]:
        """What is trained from."""
        return self.data.loader

    def check_parent(self, order: Mapping[str, Any]) -> None:
        """Refuse a fork of a DiT for other latents, classes or texts."""
        check_same_latents(order, self.data.space, f"data.shards={self.config.data.shards}")

    def describe_data(self) -> list[str]:
        """What is read."""
        return self.data.describe()

    def build(self, fresh: bool) -> LatentDiffusion:
        """The network in its engine."""
        data = self.data
        return LatentDiffusion(
            self.config,
            self.ranks,
            data.space,
            data.statistics,
            fresh,
            empty_caption=data.empty_caption,
            held_out=data.held_out,
        )
