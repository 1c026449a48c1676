"""Settings of every run whose method trains networks in DeepSpeed engines; a method's configuration extends them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.config.learning import (
    ActivationCheckpointingConfig,
    Compile,
    EmaConfig,
    OptimizerConfig,
    ZeroConfig,
)
from trainer.config.run import RunConfig
from trainer.config.running import NetworkValidationConfig

# These settings of the data change neither which clips are drawn nor their order.
FREE_DATA = (
    "data.shards",
    "data.text",
    "data.workers",
    "data.prefetch",
    "data.timeout_s",
    "data.cache_dir",
    "data.cache_bytes",
    "data.max_bad_samples",
)


@dataclass(kw_only=True)
class NetworkRunConfig(RunConfig):
    """What the engines need to know of a run, and how a global batch is divided."""

    # clips a rank puts through the networks at once; 0 = data.global_batch / (ranks x accumulation) [>= 0]
    micro_batch: int = 0
    # micro-batches a rank adds up in one step; 0 = data.global_batch / (ranks x micro_batch) [>= 0]
    accumulation: int = 0
    # what torch.compile translates: none, blocks (of the transformers), or all; needs a C++ compiler, and the first
    # step takes minutes
    compile: Compile = Compile.none
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    activation_checkpointing: ActivationCheckpointingConfig = field(default_factory=ActivationCheckpointingConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    validation: NetworkValidationConfig = field(default_factory=NetworkValidationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation.ema and self.ema.decay == 0:
            raise ValueError("validation.ema=true needs a moving average; set ema.decay, e.g. 0.999")
        if self.micro_batch < 0 or self.accumulation < 0:
            raise ValueError("micro_batch and accumulation must not be negative; 0 means: derive it from the other")

    @property
    def global_batch(self) -> int:
        """Clips of one step of all ranks together, `data.global_batch`."""
        raise NotImplementedError

    def check_best(self, terms: Sequence[str]) -> None:
        """Refuse a `checkpoint.best` that validation does not measure.

        Args:
            terms: the terms of validation.
        Raises:
            ValueError: naming the key.
        """
        best = self.checkpoint.best
        if not best:
            return
        if not self.validation.every:
            raise ValueError(f"checkpoint.best={best} is measured by validation; set validation.every, e.g. 5000")
        if best not in terms:
            raise ValueError(f"checkpoint.best={best} is not measured; choose one of {', '.join(terms)}")

    def check_warmup(self, name: str, optimizer: OptimizerConfig) -> None:
        """Refuse a warm-up of the network `name` that is longer than the run.

        Raises:
            ValueError: naming the key.
        """
        if optimizer.warmup >= self.steps:
            raise ValueError(
                f"optim.{name}.warmup={optimizer.warmup} does not end in steps={self.steps}; set "
                f"optim.{name}.warmup lower"
            )

    def split_batch(self, ranks: int) -> tuple[int, int]:
        """How a global batch is divided: global_batch = ranks x accumulation x micro_batch.

        Returns:
            (micro_batch, accumulation).
        Raises:
            ValueError: the division leaves a remainder, or the two settings contradict each other.
        """
        total = self.global_batch
        if total % ranks:
            raise ValueError(
                f"data.global_batch={total} cannot be divided among {ranks} ranks; set data.global_batch to a multiple "
                f"of {ranks}, or start a number of ranks that divides {total}"
            )
        share = total // ranks
        micro = self.micro_batch or (share // self.accumulation if self.accumulation else share)
        rounds = self.accumulation or (share // micro if micro else 0)
        if micro * rounds != share:
            raise ValueError(
                f"data.global_batch={total} on {ranks} ranks is {share} clips a rank, which is not "
                f"accumulation={self.accumulation or rounds} x micro_batch={self.micro_batch or micro}; set one "
                f"of the two to 0 to derive it, or both so that their product is {share}"
            )
        return micro, rounds

    def check_device(self, device: str) -> None:
        """Refuse what the device or the machine cannot do. `device` is 'cpu' or 'cuda'."""
        super().check_device(device)
        compiler = os.environ.get("CXX", "g++")
        if self.compile is not Compile.none and shutil.which(compiler) is None:
            raise ValueError(
                f"compile={self.compile.value} needs a C++ compiler, and there is no {compiler}; install one, name "
                "another in the environment variable CXX, or set compile=none"
            )
