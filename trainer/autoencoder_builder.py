"""The data of a training of VidTwin, opened before its networks are built (see `method.MethodBuilder`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from data_pipeline.read.loader import ClipLoader
from model.lpips import LPIPS
from trainer.autoencoder import Autoencoder
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.evaluation.validation import Validation
from trainer.perceptual import load_network


class AutoencoderBuilder:
    """Opens the clips to train from and to validate on; `build` makes the networks.

    Raises:
        ValueError: the global batch does not divide among the ranks, or the dataset does not have what is wanted.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        micro_batch, _ = config.split_batch(ranks.world_size)
        self.config, self.ranks = config, ranks
        on_gpu = ranks.device.type == "cuda"
        self.loader = ClipLoader(config.data, ranks.rank, ranks.world_size, pin_memory=on_gpu)
        self.validation: Validation | None = None
        if config.validation.every:
            self.validation = Validation(
                config.validation,
                config.data,
                batch=micro_batch,
                perceptual=validation_networks(config, ranks.device),
                ranks=ranks,
            )

    def check_parent(self, order: Mapping[str, Any]) -> None:
        """Nothing: VidTwin takes clips of every dataset."""

    def describe_data(self) -> list[str]:
        """A line for each split that is read."""
        validation = self.validation.describe() if self.validation is not None else []
        return [self.loader.describe(), *validation]

    def build(self, fresh: bool) -> Autoencoder:
        """The networks in their engines."""
        if self.ranks.is_main and statistics_of_one_clip(self.config, self.ranks.world_size):
            print(
                "warning: discriminator.norm=batch takes its statistics from a single clip, because a micro-batch is "
                "one clip; set discriminator.norm=group, or start fewer ranks or a larger data.global_batch for more "
                "clips in a micro-batch",
                flush=True,
            )
        return Autoencoder(self.config, self.ranks, fresh, validation=self.validation)


def statistics_of_one_clip(config: TrainConfig, ranks: int) -> bool:
    """Whether the discriminator normalises by the statistics of one clip, which tell little about a batch."""
    adversarial = config.gan.weight > 0 and config.discriminator.norm == "batch"
    return adversarial and config.split_batch(ranks)[0] == 1


def validation_networks(config: TrainConfig, device: torch.device) -> dict[str, LPIPS]:
    """The networks that validation measures with, in fp32, by the names of their metrics."""
    weights = config.loss.lpips_weights
    networks = {name.value: load_network(name, weights, device) for name in config.validation_networks()}
    return {name: network for name, network in networks.items() if network is not None}
