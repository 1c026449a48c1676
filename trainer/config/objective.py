"""What is learned: the loss of the generator, and when and how the discriminator joins. Steps are generator steps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from os.path import expanduser

from data_pipeline.store.open import plain_place

LOGVAR_FLOOR = -10.0
"""The scale of the error counts as no smaller than exp(-10) a value, 0.6 % of a step of 8-bit frames: 93 dB."""
LOGVAR_CEILING = 10.0
"""Pixels lie in [-1, 1], so their error is at most 2, for which 0.7 is the best; more only makes the loss small."""


class GeneratorLoss(Enum):
    """What the generator minimises of the discriminator's logits."""

    hinge = "hinge"
    non_saturating = "non_saturating"


@dataclass(kw_only=True)
class GanConfig:
    """When the discriminator joins. Steps are generator steps."""

    # first step at which the discriminator learns; the released YAML's 20001 counts two optimizers [>= 0]
    start: int = 10_000
    # steps for which the discriminator learns alone [>= 0]
    warmup: int = 500
    # steps over which the adversarial weight rises from 0 to `weight`; 0 = at once [>= 0]
    ramp: int = 1_000
    # adversarial weight, before the adaptive factor (paper, table 9); 0 = never build a discriminator [>= 0]
    weight: float = 0.05
    # the generator's adversarial loss: hinge (the paper: minus the mean logit), or non_saturating (VidTok v1.1: minus
    # the log-sigmoid of each picture's mean logit, so that pictures taken for real pull less); the discriminator's is a
    # hinge with both
    generator_loss: GeneratorLoss = GeneratorLoss.hinge
    # scale the adversarial gradient to the reconstruction gradient at the decoder's last layer
    adaptive: bool = True
    # take the adaptive factor from this rank's clips only, as the released code does; false = from all ranks' clips
    local_weight: bool = False
    # weight of the LeCam regulariser (Tseng et al. 2021) in the discriminator's loss; 0 = off [>= 0]
    lecam_weight: float = 0.0
    # decay of LeCam's running means of the logits [>= 0, < 1]
    lecam_decay: float = 0.999
    # step the discriminator's optimizer on zero gradients before `start`, as the released code does: this ages Adam's
    # bias correction, and costs a discriminator pass a step
    idle_steps: bool = False

    def __post_init__(self) -> None:
        for name in ("start", "warmup", "ramp", "weight", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"gan.{name}={getattr(self, name)} must not be negative; set gan.{name}=0 for none")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"gan.lecam_decay={self.lecam_decay} must lie in [0, 1)")

    def learns(self, step: int) -> bool:
        """Whether the discriminator is trained at generator step `step`."""
        return self.weight > 0 and step >= self.start

    def adversarial_weight(self, step: int) -> float:
        """Weight of the adversarial term at generator step `step`, before the adaptive factor."""
        steps_in_ramp = step - self.start - self.warmup
        if steps_in_ramp < 0:
            return 0.0
        return self.weight * min(1.0, steps_in_ramp / self.ramp) if self.ramp else self.weight


class Perceptual(Enum):
    """Networks that judge how different two pictures look."""

    lpips = "lpips"
    st_lpips = "st_lpips"
    none = "none"


@dataclass(kw_only=True)
class LossConfig:
    """The generator's objective next to the adversarial term."""

    # weight of the KL divergence of the three posteriors [>= 0]
    kl_weight: float = 1e-3
    # generator steps over which loss.kl_weight is reached from 0, in a straight line; 0 = at once [>= 0]
    kl_warmup: int = 0
    # network that judges pictures in the reconstruction error: lpips (the paper's; needs loss.lpips_weights), st_lpips
    # (of the same kind, and its weights come from PyPI: pip install -e '.[perceptual]') or none
    perceptual: Perceptual = Perceptual.lpips
    # weight of that network in the reconstruction error [> 0]
    perceptual_weight: float = 0.05
    # frames of each clip that go through that network, drawn anew at each step; 0 = all [>= 0]
    perceptual_frames: int = 0
    # LPIPS-VGG weights: a .safetensors file (docs/training.md says how to make one)
    lpips_weights: str = ""
    # draw the latents from their posteriors; false = use the means
    sample_posterior: bool = True
    # logarithm of the reconstruction error's scale: at step 0, or throughout with learn_logvar=false; the error is
    # divided by its exponential [-10 ... 10]
    logvar: float = 0.0
    # learn the error's scale with the generator; false = the scale stays at loss.logvar, also where init_from has
    # another
    learn_logvar: bool = True

    def __post_init__(self) -> None:
        self.lpips_weights = expanduser(plain_place(self.lpips_weights, "loss.lpips_weights"))
        if self.kl_weight < 0:
            raise ValueError(f"loss.kl_weight={self.kl_weight} must not be negative; set loss.kl_weight=0 for none")
        if self.logvar < LOGVAR_FLOOR:
            raise ValueError(
                f"loss.logvar={self.logvar} must be at least {LOGVAR_FLOOR:g}: a smaller scale says that values are "
                "rebuilt to less than a hundredth of a step of 8-bit frames"
            )
        if self.logvar > LOGVAR_CEILING:
            raise ValueError(
                f"loss.logvar={self.logvar} must be at most {LOGVAR_CEILING:g}: the error is divided by exp(logvar), "
                "which would leave next to nothing of it; the scale of an error of 2, the largest of a pixel, is 0.7"
            )
        if self.kl_warmup < 0:
            raise ValueError(f"loss.kl_warmup={self.kl_warmup} must not be negative; set loss.kl_warmup=0 for none")
        if self.perceptual_weight <= 0:
            raise ValueError(
                f"loss.perceptual_weight={self.perceptual_weight} must be more than 0; loss.perceptual=none trains "
                "without a perceptual network"
            )
        if self.perceptual_frames < 0:
            raise ValueError(f"loss.perceptual_frames={self.perceptual_frames} must not be negative; 0 means all")

    def kl_weight_at(self, step: int) -> float:
        """Weight of the KL divergence at generator step `step`, counted from 0."""
        return self.kl_weight * min(1.0, step / self.kl_warmup) if self.kl_warmup else self.kl_weight
