"""How the networks learn: optimizers, precision, ZeRO, recomputation, moving average. The loss is in objective.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum


class Precision(Enum):
    """Type of the networks' weights and activations; the optimizer always holds fp32 masters."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Freeze(Enum):
    """What of the generator does not learn."""

    none = "none"
    encoder = "encoder"


class Recompute(Enum):
    """Which transformer blocks forget their activations and recompute them in the backward pass."""

    none = "none"
    full = "full"
    every = "every"
    selective = "selective"


class Compile(Enum):
    """Which parts of a step torch.compile translates."""

    none = "none"
    blocks = "blocks"
    all = "all"


class Shape(Enum):
    """Course of the learning rate after warm-up."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class Decay(Enum):
    """Which weights decay."""

    all = "all"
    matrices = "matrices"


class OptimizerName(Enum):
    """Adam couples weight decay into the gradient, AdamW does not."""

    adam = "adam"
    adamw = "adamw"


@dataclass(kw_only=True)
class OptimizerConfig:
    """One network's optimizer and its learning rate. Steps are generator steps, for the discriminator too."""

    # adam (the paper) or adamw (the released code)
    name: OptimizerName = OptimizerName.adam
    # peak learning rate; paper: 1.6e-4 [> 0]
    lr: float = 1.6e-4
    # learning rate at step 0 when there is a warm-up [>= 0]
    lr_start: float = 0.0
    # learning rate at the end of cosine and linear [>= 0]
    lr_min: float = 0.0
    # linear warm-up steps; paper: 5000 [>= 0]
    warmup: int = 5_000
    # after the warm-up: constant, or down to lr_min after the last step, as half a cosine or linear
    schedule: Shape = Shape.cosine
    # Adam's two decay rates; paper: 0.9, 0.99; the released code: 0, 0.9 [each >= 0, < 1]
    betas: tuple[float, float] = (0.9, 0.99)
    # decay of the weights that optim.decay names; paper: 1e-4 [>= 0]
    weight_decay: float = 1e-4
    # Adam's denominator offset [> 0]
    eps: float = 1e-8

    def check(self, key: str) -> None:
        """Raises ValueError naming `key.<field>` and the remedy."""
        if self.lr <= 0:
            raise ValueError(f"{key}.lr={self.lr} must be positive; the paper trains with 1.6e-4")
        if not 0 <= self.lr_start <= self.lr:
            raise ValueError(f"{key}.lr_start={self.lr_start} must lie in [0, {key}.lr={self.lr}]")
        if not 0 <= self.lr_min <= self.lr:
            raise ValueError(f"{key}.lr_min={self.lr_min} must lie in [0, {key}.lr={self.lr}]")
        if self.warmup < 0:
            raise ValueError(f"{key}.warmup={self.warmup} must not be negative; set {key}.warmup=0 for none")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"{key}.betas={self.betas} must lie in [0, 1)")
        if self.weight_decay < 0:
            raise ValueError(f"{key}.weight_decay={self.weight_decay} must not be negative; set 0 for none")
        if self.eps <= 0:
            raise ValueError(f"{key}.eps={self.eps} must be positive")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of generator step `step` (from 0) in a run of `steps`."""
        if step < self.warmup:
            return self.lr_start + (self.lr - self.lr_start) * step / self.warmup
        if self.schedule is Shape.constant:
            return self.lr
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        left = 1.0 - done if self.schedule is Shape.linear else 0.5 * (1 + math.cos(math.pi * done))
        return self.lr_min + (self.lr - self.lr_min) * left


@dataclass(kw_only=True)
class SkipConfig:
    """When steps whose loss or gradient is not finite end the run."""

    # consecutive steps with a non-finite gradient (they are skipped) after which the run stops [>= 1]
    max_skipped: int = 20

    def __post_init__(self) -> None:
        if self.max_skipped < 1:
            raise ValueError(f"optim.max_skipped={self.max_skipped} must be at least 1")


@dataclass(kw_only=True)
class SharedOptimConfig(SkipConfig):
    """What the optimizers of all networks of a run share."""

    # which weights decay: all (the paper), or matrices: those of linear layers and convolutions, and no bias, norm,
    # table of scales and shifts, learnt query or logvar
    decay: Decay = Decay.all
    # largest L2 norm of each network's gradient; 0 = no clipping [>= 0]
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip < 0:
            raise ValueError(f"optim.clip={self.clip} must not be negative; set optim.clip=0 for none")

    def smaller_steps(self, network: str) -> str:
        """What to set otherwise where the training of a network diverges, for messages, as a request."""
        return f"lower optim.{network}.lr " + ("or optim.clip" if self.clip else "or set optim.clip, which is 0 (off)")


@dataclass(kw_only=True)
class OptimConfig(SharedOptimConfig):
    """Optimizers of VidTwin's two networks, and what they share."""

    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.generator.check("optim.generator")
        self.discriminator.check("optim.discriminator")


@dataclass(kw_only=True)
class ZeroConfig:
    """What DeepSpeed ZeRO splits over the ranks."""

    # 0 nothing, 1 optimizer states, 2 and gradients, 3 and weights [0 ... 3]
    stage: int = 1
    # stage 3: parameters smaller than this many elements stay whole on every rank [>= 0]
    persistence_threshold: int = 100_000
    # stages 1-3: gradients that are averaged over the ranks at once, in elements; a buffer of this size is allocated
    # [>= 1]
    bucket: int = 50_000_000
    # stages 1 and 2: average gradients over the ranks while the backward pass goes on (stage 3 always does), for a
    # second buffer; worth trying where ranks sit in several machines
    overlap_comm: bool = False
    # stages 1-3: the network's masters and Adam's state live in host memory, and the update runs there
    offload_optimizer: bool = False
    # stage 3 with offload_optimizer: this rank's share of the weights lives in host memory too, between their uses
    offload_parameters: bool = False

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"zero.stage={self.stage} must be 0, 1, 2 or 3")
        if self.persistence_threshold < 0:
            raise ValueError(
                f"zero.persistence_threshold={self.persistence_threshold} must not be negative; 0 keeps none whole"
            )
        if self.bucket < 1:
            raise ValueError(f"zero.bucket={self.bucket} must be at least 1 element; the default is 50 million")
        if self.overlap_comm and self.stage not in (1, 2):
            raise ValueError(
                f"zero.overlap_comm=true needs zero.stage=1 or 2, not {self.stage}: stage 0 averages after the "
                "backward pass, and stage 3 overlaps always"
            )
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("zero.offload_optimizer=true needs ZeRO: set zero.stage=1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"zero.offload_parameters=true needs zero.stage=3, not {self.stage}")
        if self.offload_parameters and not self.offload_optimizer:
            raise ValueError("zero.offload_parameters=true needs zero.offload_optimizer=true as well")


@dataclass(kw_only=True)
class TwoNetworkZeroConfig(ZeroConfig):
    """What DeepSpeed ZeRO splits over the ranks; all but `discriminator_stage` is for the generator."""

    # discriminator: 0 or 1 (2.8 M parameters: more would cost more than it saves) [0 ... 1]
    discriminator_stage: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discriminator_stage not in (0, 1):
            raise ValueError(f"zero.discriminator_stage={self.discriminator_stage} must be 0 or 1")


@dataclass(kw_only=True)
class ActivationCheckpointingConfig:
    """Trade computation for memory in the transformer blocks."""

    # none, full (every block), every (each n-th block), or selective (every block, keeping what is slow to recompute)
    mode: Recompute = Recompute.none
    # n of mode=every [>= 1]
    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"activation_checkpointing.every={self.every} must be at least 1")


@dataclass(kw_only=True)
class EmaConfig:
    """Exponential moving average of the fp32 weights of the network that is exported."""

    # share of the old average kept at each step, e.g. 0.999; 0 = no average [>= 0, < 1]
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay={self.decay} must lie in [0, 1); 0 switches it off")
