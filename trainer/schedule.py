"""Learning rate as a pure function of the generator step.

Warm-up and cosine follow the released code's scheduler: linear from `lr_start` to `lr` over `warmup` steps, then half a
cosine from `lr` to `lr_min` at the last step of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Shape(Enum):
    """Course of the learning rate after warm-up."""

    constant = "constant"
    cosine = "cosine"


class OptimizerName(Enum):
    """Adam couples weight decay into the gradient, AdamW does not."""

    adam = "adam"
    adamw = "adamw"


@dataclass(kw_only=True)
class OptimizerConfig:
    """One network's optimizer and its learning rate. Steps are generator steps, for the discriminator too."""

    # adam (the paper) or adamw (the released code)
    name: OptimizerName = OptimizerName.adam
    # peak learning rate; paper: 1.6e-4
    lr: float = 1.6e-4
    # learning rate at step 0 when there is a warm-up
    lr_start: float = 0.0
    # learning rate at the last step of the cosine
    lr_min: float = 0.0
    # linear warm-up steps; paper: 5000
    warmup: int = 5_000
    # after the warm-up: constant, or cosine down to lr_min at the last step
    schedule: Shape = Shape.cosine
    # Adam's two decay rates; paper: 0.9, 0.99; the released code: 0, 0.9
    betas: tuple[float, float] = (0.9, 0.99)
    # decay of every parameter; paper: 1e-4
    weight_decay: float = 1e-4
    # Adam's denominator offset
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
        return self.lr_min + 0.5 * (self.lr - self.lr_min) * (1 + math.cos(math.pi * done))
