"""Every setting of a training run, typed, with the combinations that cannot work refused before anything starts.

Settings of one part stand beside its code (`gan.py`, `checkpoint/config.py`, ...); here is what several parts share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from os.path import expanduser

from data_pipeline.dataset import DataConfig
from model.discriminator import DiscriminatorConfig
from model.vidtwin import VidTwinConfig
from trainer.checkpoint.config import CheckpointConfig
from trainer.ema import EmaConfig
from trainer.gan import GanConfig
from trainer.objective import LossConfig
from trainer.profiler import ProfileConfig
from trainer.rollback import RollbackConfig
from trainer.schedule import OptimizerConfig
from trainer.validation import ValidationConfig
from trainer.watchdog import WatchdogConfig


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


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizers of the two networks, and what they share."""

    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    # largest L2 norm of each network's gradient; 0 = no clipping
    clip: float = 1.0
    # consecutive steps with a non-finite gradient (they are skipped) after which the run stops
    max_skipped: int = 20

    def __post_init__(self) -> None:
        self.generator.check("optim.generator")
        self.discriminator.check("optim.discriminator")
        if self.clip < 0:
            raise ValueError(f"optim.clip={self.clip} must not be negative; set optim.clip=0 for none")
        if self.max_skipped < 1:
            raise ValueError(f"optim.max_skipped={self.max_skipped} must be at least 1")


@dataclass(kw_only=True)
class ZeroConfig:
    """What DeepSpeed ZeRO splits over the ranks."""

    # generator: 0 nothing, 1 optimizer states, 2 and gradients, 3 and weights
    stage: int = 1
    # discriminator: 0 or 1 (2.8 M parameters: more would cost more than it saves)
    discriminator_stage: int = 0
    # stage 3: parameters smaller than this many elements stay whole on every rank
    persistence_threshold: int = 100_000
    # stages 1-3: gradients that are averaged over the ranks at once, in elements; a buffer of this size is allocated
    bucket: int = 50_000_000
    # stages 1-3: the generator's masters and Adam's state live in host memory, and the update runs there
    offload_optimizer: bool = False
    # stage 3 with offload_optimizer: this rank's share of the weights lives in host memory too, between their uses
    offload_parameters: bool = False

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"zero.stage={self.stage} must be 0, 1, 2 or 3")
        if self.discriminator_stage not in (0, 1):
            raise ValueError(f"zero.discriminator_stage={self.discriminator_stage} must be 0 or 1")
        if self.bucket < 1:
            raise ValueError(f"zero.bucket={self.bucket} must be at least 1 element; the default is 50 million")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("zero.offload_optimizer=true needs ZeRO: set zero.stage=1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"zero.offload_parameters=true needs zero.stage=3, not {self.stage}")
        if self.offload_parameters and not self.offload_optimizer:
            raise ValueError("zero.offload_parameters=true needs zero.offload_optimizer=true as well")


@dataclass(kw_only=True)
class ActivationCheckpointingConfig:
    """Trade computation for memory in the transformer blocks."""

    # none, full (every block), every (each n-th block), or selective (every block, keeping what is slow to recompute)
    mode: Recompute = Recompute.none
    # n of mode=every
    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"activation_checkpointing.every={self.every} must be at least 1")


@dataclass(kw_only=True)
class TelemetryConfig:
    """What is written down, and how often. Between two log steps nothing waits for the device."""

    # steps between rows of metrics.jsonl, TensorBoard scalars and console lines
    log_every: int = 50
    # steps between sample pictures in TensorBoard; 0 = none
    samples_every: int = 1_000
    # clips in the sample pictures, at most one micro-batch
    sample_clips: int = 4
    # write TensorBoard files next to metrics.jsonl
    tensorboard: bool = True
    # peak of one accelerator in FLOP/s for the model FLOP utilisation; 0 = look it up by its name and the precision
    peak_flops: float = 0.0

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"telemetry.log_every={self.log_every} must be at least 1")
        if self.samples_every < 0 or self.sample_clips < 1:
            raise ValueError("telemetry.samples_every must not be negative and telemetry.sample_clips at least 1")


@dataclass(kw_only=True)
class TrainConfig:
    """A training run."""

    # directory of the run, on storage that every rank sees
    output: str = "???"
    # generator steps
    steps: int = 500_000
    # seed of the initial weights and of the posterior noise
    seed: int = 0
    # directory to take the initial weights from: model.safetensors, and discriminator.safetensors and logvar if present
    init_from: str = ""
    # none, or encoder: only the decoder half learns, for the latents that init_from's model makes
    freeze: Freeze = Freeze.none
    # clips a rank puts through the networks at once; 0 = data.global_batch / (ranks x accumulation)
    micro_batch: int = 0
    # micro-batches a rank adds up in one step; 0 = data.global_batch / (ranks x micro_batch)
    accumulation: int = 0
    # fp32, bf16, or fp16 (GPU only)
    precision: Precision = Precision.bf16
    # let fp32 matrix products on a GPU round to TF32
    tf32: bool = True
    # minutes a rank waits for the others before the run is given up
    collective_timeout: float = 15.0
    # exit status after a stop on request; a scheduler that takes 0 for the end of training needs another, e.g. 75
    preempted_status: int = 0
    model: VidTwinConfig = field(default_factory=VidTwinConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    activation_checkpointing: ActivationCheckpointingConfig = field(default_factory=ActivationCheckpointingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        if "://" in self.output:
            raise ValueError(
                f"output={self.output} must be a directory of this machine or of a shared file system; checkpoints go "
                "to a store with checkpoint.upload=s3://BUCKET/RUN"
            )
        self.output, self.init_from = expanduser(self.output), expanduser(self.init_from)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.collective_timeout <= 0:
            raise ValueError(f"collective_timeout={self.collective_timeout} must be positive (minutes)")
        self.watchdog.check_below(self.collective_timeout)
        if not 0 <= self.preempted_status <= 125 or self.preempted_status in (1, 2):
            raise ValueError(
                f"preempted_status={self.preempted_status} must be 0 or 3 ... 125 and mean nothing else; set 0 or 75"
            )
        if self.validation.ema and self.ema.decay == 0:
            raise ValueError("validation.ema=true needs a moving average; set ema.decay, e.g. 0.999")
        if self.micro_batch < 0 or self.accumulation < 0:
            raise ValueError("micro_batch and accumulation must not be negative; 0 means: derive it from the other")
        if self.freeze is not Freeze.none and not self.init_from:
            raise ValueError(
                f"freeze={self.freeze.value} would keep random weights; set init_from=DIRECTORY, or freeze=none"
            )
        if self.loss.lpips_weight > 0 and not self.loss.lpips_weights:
            raise ValueError(
                f"loss.lpips_weight={self.loss.lpips_weight} needs the LPIPS-VGG weights: set loss.lpips_weights=FILE "
                "(docs/training.md says how to make it), or loss.lpips_weight=0 to train without"
            )
        if self.gan.weight > 0 and self.gan.start >= self.steps:
            raise ValueError(
                f"gan.start={self.gan.start} is never reached in steps={self.steps}; set gan.start lower, or "
                "gan.weight=0 to train without a discriminator"
            )
        for name in ("generator", "discriminator"):
            warmup = getattr(self.optim, name).warmup
            if warmup >= self.steps:
                raise ValueError(
                    f"optim.{name}.warmup={warmup} does not end in steps={self.steps}; set optim.{name}.warmup lower"
                )
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

    def split_batch(self, ranks: int) -> tuple[int, int]:
        """How a global batch is divided: global_batch = ranks x accumulation x micro_batch.

        Returns:
            (micro_batch, accumulation).
        Raises:
            ValueError: the division leaves a remainder, or the two settings contradict each other.
        """
        total = self.data.global_batch
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
        """Refuse what the device cannot do. `device` is 'cpu' or 'cuda'."""
        if self.precision is Precision.fp16 and device == "cpu":
            raise ValueError("precision=fp16 needs a GPU: DeepSpeed has no fp16 on the CPU; set precision=bf16 or fp32")
