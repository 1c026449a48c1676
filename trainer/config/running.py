"""How a run is carried out and watched: checkpoints, telemetry, validation, watchdog, rollback, profiler."""

from __future__ import annotations

from dataclasses import dataclass, field
from os.path import expanduser

from data_pipeline.source.names import SPLITS
from data_pipeline.store.open import plain_place, split_location
from trainer.config.objective import Perceptual


@dataclass(kw_only=True)
class TelemetryConfig:
    """What is written down, and how often. Between two log steps only DeepSpeed waits for the device."""

    # steps between rows of metrics.jsonl, TensorBoard scalars and console lines [>= 1]
    log_every: int = 50
    # steps between pictures, of a method that makes some; 0 = none [>= 0]
    samples_every: int = 1_000
    # examples in the pictures, at most one micro-batch [>= 1]
    sample_clips: int = 4
    # write TensorBoard files next to metrics.jsonl
    tensorboard: bool = True
    # project of Weights & Biases that the run is shown in as well (pip install -e '.[wandb]'); empty = none
    wandb: str = ""
    # peak of one accelerator in FLOP/s for the model FLOP utilisation; 0 = look it up by its name and the precision
    # [>= 0]
    peak_flops: float = 0.0
    # share by which a rank's own time (forward passes and wait for data) must exceed the median of all ranks before the
    # rank is named as slow on the console; 0 = never [>= 0]
    slow_rank: float = 0.25

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"telemetry.log_every={self.log_every} must be at least 1")
        if self.samples_every < 0 or self.sample_clips < 1:
            raise ValueError("telemetry.samples_every must not be negative and telemetry.sample_clips at least 1")
        if self.peak_flops < 0:
            raise ValueError(f"telemetry.peak_flops={self.peak_flops} must not be negative; 0 looks it up (FLOP/s)")
        if self.slow_rank < 0:
            raise ValueError(f"telemetry.slow_rank={self.slow_rank} must not be negative; 0 names no rank as slow")


@dataclass(kw_only=True)
class ProfileConfig:
    """A window of steps whose trace is written to OUTPUT/profile."""

    # first step that is traced, as the console counts them; 0 = none [>= 0]
    at: int = 0
    # how many steps [>= 1]
    steps: int = 3

    def __post_init__(self) -> None:
        if self.at < 0 or self.steps < 1:
            raise ValueError("profile.at must not be negative and profile.steps at least 1; profile.at=0 for no trace")


@dataclass(kw_only=True)
class RollbackConfig:
    """When a loss spike takes the run back to the last checkpoint before it, and past the batches since."""

    # deviations above the median of the last `window` logged losses that count as a spike, e.g. 10; 0 = never go back
    # [>= 0]
    factor: float = 0.0
    # logged losses that say what is normal [>= 4]
    window: int = 20
    # logged losses in a row that must be above [>= 1]
    patience: int = 2
    # which of the terms that every step has, such as total_loss
    term: str = "total_loss"
    # rollbacks in a run; where one more would be needed, the run stops [>= 1]
    limit: int = 5

    def __post_init__(self) -> None:
        if self.factor < 0:
            raise ValueError(f"rollback.factor={self.factor} must not be negative; set rollback.factor=0 for none")
        if self.window < 4 or self.patience < 1 or self.limit < 1:
            raise ValueError("rollback.window must be at least 4, rollback.patience and rollback.limit at least 1")


@dataclass(kw_only=True)
class ValidationConfig:
    """A measurement on held-out data in the middle of training."""

    # steps between two; 0 = none [>= 0]
    every: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"validation.every={self.every} must not be negative; set validation.every=0 for none")

    def due(self, step: int) -> bool:
        """Whether a pass follows step `step`, counted from 1."""
        return self.every > 0 and step % self.every == 0


@dataclass(kw_only=True)
class NetworkValidationConfig(ValidationConfig):
    """A measurement of a network whose weights may have a moving average."""

    # measure the moving average of the weights instead of the weights; needs ema.decay
    ema: bool = False


@dataclass(kw_only=True)
class ClipValidationConfig(NetworkValidationConfig):
    """A measurement of how well held-out clips are rebuilt."""

    # windows measured, spread evenly over the split [>= 1]
    clips: int = 64
    # the splits that are measured, of val, test and train
    splits: list[str] = field(default_factory=lambda: ["val"])
    # a perceptual network to measure with, besides the loss's: lpips (needs loss.lpips_weights), st_lpips or none
    perceptual: Perceptual = Perceptual.none
    # file of the I3D network that FVD is measured with (docs/evaluation.md); empty = no FVD
    fvd: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fvd = expanduser(plain_place(self.fvd, "validation.fvd"))
        if self.clips < 1:
            raise ValueError(f"validation.clips={self.clips} must be at least 1")
        if not self.splits:
            raise ValueError("validation.splits=[] names no split; set validation.every=0 for no validation")
        for split in self.splits:
            if split not in SPLITS:
                raise ValueError(f"validation.splits: {split!r} is not a split; use some of {', '.join(SPLITS)}")
        if len(set(self.splits)) < len(self.splits):
            raise ValueError(f"validation.splits={','.join(self.splits)} names a split twice")


TOGETHER_S = 5.0  # between dump and exit: a launcher that sees one rank exit kills the others


@dataclass(kw_only=True)
class WatchdogConfig:
    """Minutes that a part of the run may take before every rank writes its stacks to OUTPUT/hangs and exits with 70."""

    # minutes for one step, its wait for data included; 0 = no watchdog at all [>= 0]
    step_budget: float = 10.0
    # minutes from joining the other ranks to the end of the first step, so with reading a checkpoint, building and
    # warming up [>= 0]
    start_budget: float = 14.0
    # minutes for writing a checkpoint, for a validation pass, for exporting the model [>= 0]
    pause_budget: float = 14.0

    def __post_init__(self) -> None:
        for name in ("step_budget", "start_budget", "pause_budget"):
            if getattr(self, name) < 0:
                raise ValueError(f"watchdog.{name}={getattr(self, name)} must not be negative (minutes)")
        if self.step_budget > 0 and min(self.start_budget, self.pause_budget) < self.step_budget:
            raise ValueError(
                f"watchdog.start_budget={self.start_budget} and watchdog.pause_budget={self.pause_budget} must not be "
                f"less than watchdog.step_budget={self.step_budget} (minutes); raise them, or set "
                "watchdog.step_budget=0 for no watchdog"
            )

    def check_below(self, collective_timeout: float) -> None:
        """Refuse budgets that leave a hung rank no time to say where it hangs.

        A rank waits for the others from some moment of a part of the run on, and gives up `collective_timeout` minutes
        later; then the launcher ends all ranks. No such moment lies before the part's beginning, so with the budget
        below the timeout, and time to write the stacks, all ranks have written theirs before.

        Raises:
            ValueError: naming the keys.
        """
        if self.step_budget == 0:
            return
        for name in ("step_budget", "start_budget", "pause_budget"):
            if 60 * getattr(self, name) + TOGETHER_S > 60 * collective_timeout:
                raise ValueError(
                    f"watchdog.{name}={getattr(self, name):g} must lie below collective_timeout={collective_timeout:g} "
                    f"(minutes) by {TOGETHER_S:g} s or more, because at that the ranks that wait for a hung one give "
                    "up, and it is ended before it has said where it hangs; lower all watchdog budgets, raise "
                    "collective_timeout, or set watchdog.step_budget=0 for no watchdog"
                )


AUTO, NEVER = "auto", "never"
"""Values of `checkpoint.resume`, besides the step of a checkpoint."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """When the whole state is written to OUTPUT/checkpoints."""

    # steps between checkpoints; one is always written at the end and when the run is asked to stop [>= 1]
    every: int = 1_000
    # complete checkpoints to keep, the newest [>= 1]
    keep: int = 3
    # besides these, every checkpoint whose step is a multiple of this stays; 0 = none [>= 0]
    keep_every: int = 0
    # term of validation whose best checkpoint is saved when it is measured and stays; empty = none
    best: str = ""
    # folder in host memory that a save goes through, so that training waits for the copy to memory and not for the
    # disk; where it has no room training waits for the disk, and a line says so; empty = always wait for the disk
    staging: str = "/dev/shm"
    # where each checkpoint is copied to in the background, e.g. s3://bucket/run (one for each run); empty = nowhere
    upload: str = ""
    # seconds to wait for the last upload at the end of training [>= 0]
    upload_wait: float = 600.0
    # seconds to wait for it when the run is asked to stop [>= 0]
    upload_wait_stopped: float = 20.0
    # auto = go on from the newest complete checkpoint; a step, e.g. 600 = go back to that checkpoint, and rename the
    # later ones; never = refuse to start where one exists
    resume: str = AUTO

    def __post_init__(self) -> None:
        self.staging = expanduser(plain_place(self.staging, "checkpoint.staging"))
        if self.staging and not self.staging.startswith("/"):
            raise ValueError(
                f"checkpoint.staging={self.staging} must be an absolute path to a folder in memory, such as /dev/shm; "
                "leave it empty to always wait for the disk"
            )
        if self.resume not in (AUTO, NEVER) and not (self.resume.isascii() and self.resume.isdigit()):
            raise ValueError(
                f"checkpoint.resume={self.resume} must be auto, never or the step of a checkpoint, e.g. 600"
            )
        self.resume = self.resume if self.resume_step is None else str(self.resume_step)
        if self.every < 1:
            raise ValueError(f"checkpoint.every={self.every} must be at least 1")
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep={self.keep} must be at least 1")
        if self.keep_every < 0:
            raise ValueError(f"checkpoint.keep_every={self.keep_every} must not be negative; 0 keeps none besides")
        if self.upload_wait < 0 or self.upload_wait_stopped < 0:
            raise ValueError("checkpoint.upload_wait and checkpoint.upload_wait_stopped must not be negative (seconds)")
        if self.upload:
            self.upload = plain_place(self.upload, "checkpoint.upload")
            try:
                split_location(self.upload)
            except ValueError as error:
                raise ValueError(f"checkpoint.upload: {error}") from error

    @property
    def resume_step(self) -> int | None:
        """The step of the checkpoint to go back to; None where `resume` names none."""
        return None if self.resume in (AUTO, NEVER) else int(self.resume)

    def due(self, step: int, steps: int) -> bool:
        """Whether a checkpoint follows step `step`, counted from 1, of a run of `steps` steps."""
        return step >= steps or step % self.every == 0
