"""Every setting of a training run, typed, with the combinations that cannot work refused before anything starts.

The settings of one part are in `learning.py` and `running.py`; here stands what several parts share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os.path import expanduser

from data_pipeline.read.config import DataConfig
from model.config import DiscriminatorConfig, VidTwinConfig
from trainer.config.learning import (
    ActivationCheckpointingConfig,
    EmaConfig,
    Freeze,
    GanConfig,
    LossConfig,
    OptimConfig,
    Precision,
    ZeroConfig,
)
from trainer.config.running import (
    CheckpointConfig,
    ProfileConfig,
    RollbackConfig,
    TelemetryConfig,
    ValidationConfig,
    WatchdogConfig,
)


@dataclass(kw_only=True)
class TrainConfig:
    """A training run."""

    # directory of the run, on storage that every rank sees
    output: str = "???"
    # generator steps [>= 1]
    steps: int = 500_000
    # seed of the initial weights and of the posterior noise [0 ... 2**63 - 1]
    seed: int = 0
    # directory to take the initial weights from: model.safetensors, and discriminator.safetensors and logvar if present
    init_from: str = ""
    # none, or encoder: only the decoder half learns, for the latents that init_from's model makes
    freeze: Freeze = Freeze.none
    # clips a rank puts through the networks at once; 0 = data.global_batch / (ranks x accumulation) [>= 0]
    micro_batch: int = 0
    # micro-batches a rank adds up in one step; 0 = data.global_batch / (ranks x micro_batch) [>= 0]
    accumulation: int = 0
    # fp32, bf16, or fp16 (GPU only)
    precision: Precision = Precision.bf16
    # let fp32 matrix products on a GPU round to TF32
    tf32: bool = True
    # minutes a rank waits for the others before the run is given up [> 0]
    collective_timeout: float = 15.0
    # exit status after a stop on request; a scheduler that takes 0 for the end of training needs another, e.g. 75
    # [0 or 3 ... 125]
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
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie between 0 and 2**63 - 1")
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
