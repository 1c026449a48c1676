"""Every setting of a training that learns to make latents, with the combinations that cannot work refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_pipeline.read.config import LatentDataConfig
from model.dit_config import Conditioning, DiTConfig, Objective, ProcessConfig
from trainer.config.learning import EmaConfig, OptimizerConfig, Shape, SharedOptimConfig
from trainer.config.loader import word_of
from trainer.config.networks import FREE_DATA, NetworkRunConfig
from trainer.config.running import NetworkValidationConfig

# The network, what it predicts and the order of the data must stay when a run goes on.
FIXED = ("dit.", "process.", "data.")
HELD_OUT_SPLIT = "val"
"""Validation measures on latents of this split."""
_OF_ONE_OBJECTIVE = {
    "process.schedule": Objective.x0,
    "process.steps": Objective.x0,
    "loss.min_snr_gamma": Objective.x0,
    "process.shift": Objective.flow,
    "loss.logit_mean": Objective.flow,
    "loss.logit_deviation": Objective.flow,
}
"""Settings that mean nothing with the other objective."""
VALIDATION_TERMS = ("val_loss", "val_loss_structure", "val_loss_dynamics")


@dataclass(kw_only=True)
class DiffusionLossConfig:
    """What is minimised, and how often times are drawn."""

    # share of the structure latent in the loss, the rest is the dynamics latent's; null = every number of both latents
    # counts the same [>= 0, < 1]
    structure_share: float | None = None
    # for x0: weigh a step by min(SNR, gamma) (Hang et al. 2023, the formula for a network that predicts x0); 0 = all
    # steps alike, which is the loss of the paper; with process.zero_terminal_snr the last step then weighs nothing
    # [>= 0]
    min_snr_gamma: float = 0.0
    # for flow: middle of the times' logits; positive = more noise [-10 ... 10]
    logit_mean: float = 0.0
    # for flow: deviation of the times' logits [> 0, < 100]
    logit_deviation: float = 1.0
    # share of the clips whose condition is dropped, so that samples can be guided; paper: 0.2 [>= 0, < 1]
    condition_drop: float = 0.2

    def __post_init__(self) -> None:
        if self.structure_share is not None and not 0 <= self.structure_share < 1:
            raise ValueError(
                f"loss.structure_share={self.structure_share} must lie in [0, 1); null counts every number the same"
            )
        if self.min_snr_gamma < 0:
            raise ValueError(f"loss.min_snr_gamma={self.min_snr_gamma} must not be negative; 0 weighs all steps alike")
        if not -10 <= self.logit_mean <= 10:
            raise ValueError(f"loss.logit_mean={self.logit_mean} must lie in [-10, 10]; 0 is the middle")
        if not 0 < self.logit_deviation < 100:
            raise ValueError(f"loss.logit_deviation={self.logit_deviation} must lie in (0, 100); 1 is usual")
        if not 0 <= self.condition_drop < 1:
            raise ValueError(f"loss.condition_drop={self.condition_drop} must lie in [0, 1); 0 drops none")


@dataclass(kw_only=True)
class DiTOptimizerConfig(OptimizerConfig):
    """The optimizer of the DiT and its learning rate."""

    # peak learning rate; the code of DiT: 1e-4 [> 0]
    lr: float = 1e-4
    # linear warm-up steps; paper: 10,000 [>= 0]
    warmup: int = 10_000
    # after the warm-up: constant, or down to lr_min after the last step, as half a cosine or linear
    schedule: Shape = Shape.constant
    # Adam's two decay rates; paper: 0.9, 0.999 [each >= 0, < 1]
    betas: tuple[float, float] = (0.9, 0.999)
    # decay of the weights that optim.decay names; the code of DiT: 0 [>= 0]
    weight_decay: float = 0.0


@dataclass(kw_only=True)
class DiffusionOptimConfig(SharedOptimConfig):
    """The optimizer of the DiT."""

    dit: DiTOptimizerConfig = field(default_factory=DiTOptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dit.check("optim.dit")


@dataclass(kw_only=True)
class WarmedEmaConfig(EmaConfig):
    """Exponential moving average of the DiT's fp32 weights, which samples are made with."""

    # share of the old average kept at each step; 0 = no average [>= 0, < 1]
    decay: float = 0.9999
    # keep less in the beginning, (1 + n) / (10 + n) after n steps, so that a short run's average forgets where it began
    warmup: bool = True

    def decay_at(self, step: int) -> float:
        """Share kept by the update after step `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


@dataclass(kw_only=True)
class LatentValidationConfig(NetworkValidationConfig):
    """The loss on held-out latents, with the same times and noises at every time of a run."""

    # held-out clips that are measured [>= 1]
    clips: int = 64
    # times at which each is measured, spread evenly over how often training draws them [>= 1]
    times: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clips", "times"):
            if getattr(self, name) < 1:
                raise ValueError(f"validation.{name}={getattr(self, name)} must be at least 1")


@dataclass(kw_only=True)
class DiffusionConfig(NetworkRunConfig):
    """A training of a DiT on latents."""

    objective: ClassVar[tuple[str, ...]] = ("loss.",)
    meanings: ClassVar[Mapping[str, str]] = {
        "optim.decay": "which weights decay: all, or matrices: those of linear layers, and no bias, norm or table of "
        "classes",
        "optim.dit.name": "adam (the paper) or adamw (the code of DiT)",
        "telemetry.samples_every": "without effect, because latents are no pictures; launch/sample.py makes videos of "
        "a finished model [>= 0]",
        "telemetry.sample_clips": "without effect, as telemetry.samples_every is [>= 1]",
        "checkpoint.best": f"term of validation ({', '.join(VALIDATION_TERMS)}) whose best checkpoint is saved when it "
        "is measured and stays; empty = none",
        "rollback.term": "which of the terms that every step has: total_loss, loss_structure, loss_dynamics or "
        "grad_norm_dit",
        "data.normalize": "false, because the DiT normalises the latents by itself",
    }

    dit: DiTConfig = field(default_factory=DiTConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    loss: DiffusionLossConfig = field(default_factory=DiffusionLossConfig)
    optim: DiffusionOptimConfig = field(default_factory=DiffusionOptimConfig)
    ema: WarmedEmaConfig = field(default_factory=WarmedEmaConfig)
    validation: LatentValidationConfig = field(default_factory=LatentValidationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_warmup("dit", self.optim.dit)
        self.check_best(VALIDATION_TERMS)
        if self.data.normalize:
            raise ValueError(
                "data.normalize=true would normalise the latents twice, because the DiT does so by itself; set "
                "data.normalize=false"
            )
        if self.dit.condition is Conditioning.text and not self.data.text:
            raise ValueError(
                "dit.condition=text needs token embeddings of captions; set data.text= to what "
                "launch/encode_text.py has made"
            )
        if self.data.text and self.dit.condition is not Conditioning.text:
            raise ValueError(
                f"data.text={self.data.text} is for dit.condition=text, and not for "
                f"dit.condition={self.dit.condition.value}; leave one of the two away"
            )
        if self.validation.every and self.data.split == HELD_OUT_SPLIT:
            raise ValueError(
                f"data.split={HELD_OUT_SPLIT} is the split that validation.every={self.validation.every} measures on; "
                "set data.split=train, or validation.every=0"
            )
        self._check_objective()

    def _check_objective(self) -> None:
        """Refuse settings of the noise process that is not chosen. Raises: ValueError, naming the setting."""
        if self.process.objective is Objective.flow and self.process.zero_terminal_snr:
            raise ValueError(
                "process.zero_terminal_snr=true is for process.objective=x0: flow matching ends in pure noise anyway; "
                "set process.zero_terminal_snr=false"
            )
        usual = {"process": ProcessConfig(), "loss": DiffusionLossConfig()}
        for key, owner in _OF_ONE_OBJECTIVE.items():
            section, name = key.split(".")
            given, normal = (getattr(whole, name) for whole in (getattr(self, section), usual[section]))
            if owner is not self.process.objective and given != normal:
                raise ValueError(
                    f"{key}={word_of(given)} is for process.objective={owner.value}; set {key}={word_of(normal)}"
                )

    @property
    def global_batch(self) -> int:
        """`data.global_batch`."""
        return self.data.global_batch

    @classmethod
    def check_fork(cls, parent: Mapping[str, Any], settings: Mapping[str, Any], step: int) -> None:
        """See `RunConfig.check_fork`. A fork may have another loss and other data, but not another network."""
        kept = ("dit.", "process.")
        differ = [key for key in sorted(settings) if key.startswith(kept) and settings[key] != parent.get(key)]
        if differ:
            changes = ", ".join(f"{key}: {parent.get(key)} -> {settings[key]}" for key in differ)
            raise ValueError(
                f"a fork has the network of its parent ({changes}); set them back, or begin from the weights of an "
                "exported model with init_from=DIRECTORY"
            )

    @classmethod
    def identity(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The network, what it predicts, and the order of the data; see `RunConfig.identity`."""
        fixed = {key: value for key, value in settings.items() if key.startswith(FIXED) and key not in FREE_DATA}
        return super().identity(settings) | fixed
