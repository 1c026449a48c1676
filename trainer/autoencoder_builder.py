"""The data of a training of VidTwin, opened before its networks are built (see `method.MethodBuilder`)."""

from __future__ import annotations

from data_pipeline.read.loader import ClipLoader
from trainer.autoencoder import Autoencoder
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.evaluation.validation import Validation


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
            weights = config.loss.lpips_weights
            self.validation = Validation(
                config.validation, config.data, batch=micro_batch, lpips_weights=weights, ranks=ranks
            )

    def describe_data(self) -> list[str]:
        """A line for each split that is read."""
        validation = [self.validation.clips.describe()] if self.validation is not None else []
        return [self.loader.describe(), *validation]

    def build(self, fresh: bool) -> Autoencoder:
        """The networks in their engines."""
        return Autoencoder(self.config, self.ranks, fresh, validation=self.validation)
