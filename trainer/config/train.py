"""Every setting of a training of VidTwin, with the combinations that cannot work refused before anything starts.

What every run has stands in `run.py`, the settings of one part in `learning.py`, `objective.py` and `running.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_pipeline.read.config import DataConfig
from model.config import DiscriminatorConfig, VidTwinConfig
from trainer.config.learning import Compile, Freeze, OptimConfig, TwoNetworkZeroConfig
from trainer.config.networks import FREE_DATA, NetworkRunConfig
from trainer.config.objective import GanConfig, LossConfig, Perceptual
from trainer.config.running import ClipValidationConfig

# The networks and the order of the data must stay when a run goes on, because the saved weights and the saved position
# belong to them.
FIXED = ("freeze", "model.", "discriminator.", "data.")


@dataclass(kw_only=True)
class TrainConfig(NetworkRunConfig):
    """A training of VidTwin. Steps are generator steps."""

    differ_by_node: ClassVar[tuple[str, ...]] = (
        *NetworkRunConfig.differ_by_node,
        "data.shards",
        "data.cache_dir",
        "data.cache_bytes",
        "loss.lpips_weights",
        "validation.fvd",
    )
    objective: ClassVar[tuple[str, ...]] = ("loss.", "gan.")
    meanings: ClassVar[Mapping[str, str]] = {
        "telemetry.samples_every": "steps between pictures of clips, of the training batch and the same held-out ones "
        "each time; 0 = none [>= 0]",
        "telemetry.sample_clips": "clips of each in the pictures, at most one micro-batch [>= 1]",
        "checkpoint.best": "term of validation, such as val_psnr, whose best checkpoint is saved when it is measured "
        "and stays; empty = none",
        "rollback.term": "which of the terms that every step has: total_loss, nll_loss, kl_loss, l1, mse, ...",
    }

    # directory to take the initial weights from: model.safetensors, and discriminator.safetensors and logvar if present
    init_from: str = ""
    # none, or encoder: only the decoder half learns, for the latents that init_from's model makes
    freeze: Freeze = Freeze.none
    # what torch.compile translates: none, blocks (of both transformers), or all (LPIPS too); needs a C++ compiler, and
    # the first step takes minutes
    compile: Compile = Compile.none
    model: VidTwinConfig = field(default_factory=VidTwinConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    zero: TwoNetworkZeroConfig = field(default_factory=TwoNetworkZeroConfig)
    validation: ClipValidationConfig = field(default_factory=ClipValidationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_learning()
        self._check_schedules()
        self._check_clips()
        self.check_best(self._validation_terms())

    def _check_learning(self) -> None:
        if self.freeze is not Freeze.none and not (self.init_from or self.fork_from):
            raise ValueError(
                f"freeze={self.freeze.value} would keep random weights; set init_from=DIRECTORY, or freeze=none"
            )
        if self.loss.perceptual is Perceptual.lpips and not self.loss.lpips_weights:
            raise ValueError(
                "loss.perceptual=lpips needs the LPIPS-VGG weights: set loss.lpips_weights=FILE (docs/training.md says "
                "how to make it), or loss.perceptual=st_lpips, whose weights come with pip install -e '.[perceptual]', "
                "or loss.perceptual=none to train without"
            )
        if self.validation.perceptual is Perceptual.lpips and not self.loss.lpips_weights:
            raise ValueError("validation.perceptual=lpips needs the LPIPS-VGG weights: set loss.lpips_weights=FILE")
        shortest = min(self.data.frame_counts, default=self.data.frames)
        if self.loss.perceptual_frames > shortest:
            raise ValueError(
                f"loss.perceptual_frames={self.loss.perceptual_frames} is more than the {shortest} frames of a clip; "
                "set it lower, or to 0 for all"
            )

    def validation_networks(self) -> list[Perceptual]:
        """The networks of validation: the loss's, that of `validation.perceptual`, and LPIPS where it has weights."""
        if not self.validation.every:
            return []
        lpips = [Perceptual.lpips] if self.loss.lpips_weights else []
        names = dict.fromkeys([self.loss.perceptual, self.validation.perceptual, *lpips])
        return [name for name in names if name is not Perceptual.none]

    def _validation_terms(self) -> list[str]:
        """What validation measures, by its names in the telemetry."""
        metrics = ["psnr", "ssim", *(name.value for name in self.validation_networks())]
        metrics += ["fvd"] if self.validation.fvd else []
        return [f"{split}_{metric}" for split in self.validation.splits for metric in metrics]

    def _check_schedules(self) -> None:
        adversarial = self.gan.weight > 0
        if adversarial and self.gan.start >= self.steps:
            raise ValueError(
                f"gan.start={self.gan.start} is never reached in steps={self.steps}; set gan.start lower, or "
                "gan.weight=0 to train without a discriminator"
            )
        self.check_warmup("generator", self.optim.generator)
        if adversarial:
            self.check_warmup("discriminator", self.optim.discriminator)

    def _check_clips(self) -> None:
        if (self.data.frames, self.data.image_size) != (self.model.frames, self.model.image_size):
            raise ValueError(
                f"data.frames x data.image_size = {self.data.frames} x {self.data.image_size} must be what the model "
                f"is built for, model.frames x model.image_size = {self.model.frames} x {self.model.image_size}"
            )
        shortest = min(self.data.frame_counts, default=self.data.frames)
        if shortest < self.model.shortest:
            raise ValueError(
                f"data.frame_counts={self.data.frame_counts} has clips of {shortest} frames, and the model takes "
                f"{self.model.shortest} or more; set model.min_frames={shortest}"
            )

    @property
    def global_batch(self) -> int:
        """`data.global_batch`."""
        return self.data.global_batch

    def files_of_nodes(self, fresh: bool) -> dict[str, str]:
        """See `RunConfig.files_of_nodes`. The dataset is not among them, because its loader knows what it is."""
        files = {"loss.lpips_weights": self.loss.lpips_weights, "validation.fvd": self.validation.fvd}
        return super().files_of_nodes(fresh) | {key: file for key, file in files.items() if file}

    @property
    def data_of_node(self) -> tuple[str, str]:
        """See `RunConfig.data_of_node`."""
        return "data.shards", self.data.shards

    @classmethod
    def check_fork(cls, parent: Mapping[str, Any], settings: Mapping[str, Any], step: int) -> None:
        """See `RunConfig.check_fork`. The discriminator may come or go; a new one needs its whole warm-up."""
        before, now = (float(some["gan.weight"]) for some in (parent, settings))
        kept = ("freeze", "model.", "discriminator.") if before and now else ("freeze", "model.")
        differ = [key for key in sorted(settings) if key.startswith(kept) and settings[key] != parent.get(key)]
        if settings["loss.learn_logvar"] != parent.get("loss.learn_logvar"):  # it is one weight more or less
            differ.append("loss.learn_logvar")
        if differ:
            changes = ", ".join(f"{key}: {parent.get(key)} -> {settings[key]}" for key in differ)
            raise ValueError(
                f"a fork has the networks of its parent ({changes}); set them back, or begin from the weights of an "
                "exported model with init_from=DIRECTORY"
            )
        if now and not before and settings["gan.start"] < step:
            raise ValueError(
                f"gan.start={settings['gan.start']} lies before step {step}, where the fork begins with a new "
                "discriminator, so that its warm-up and ramp would be cut short or left out; set "
                f"gan.start={step} or later"
            )

    @classmethod
    def identity(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The networks, the order of the data, whether there is a discriminator, what learns; see `RunConfig.identity`.

        A logvar that does not learn is a value of the checkpoint as frozen weights are, so it may not change either.
        """
        fixed = {key: value for key, value in settings.items() if key.startswith(FIXED) and key not in FREE_DATA}
        fixed |= {"gan.weight": settings["gan.weight"] > 0, "loss.learn_logvar": settings["loss.learn_logvar"]}
        if not settings["loss.learn_logvar"]:
            fixed["loss.logvar"] = settings["loss.logvar"]
        return super().identity(settings) | fixed
