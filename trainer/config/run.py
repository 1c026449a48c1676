"""Settings that every training run has, whatever it trains. A method's configuration extends `RunConfig` by its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar

from data_pipeline.store.open import plain_place
from trainer.config.learning import Precision, SkipConfig
from trainer.config.loader import settings_of
from trainer.config.running import (
    CheckpointConfig,
    ProfileConfig,
    RollbackConfig,
    TelemetryConfig,
    ValidationConfig,
    WatchdogConfig,
)


class Device(Enum):
    """What every rank trains on."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


@dataclass(kw_only=True)
class RunConfig:
    """What the loop, the checkpoints and the telemetry need to know of a run.

    Attributes:
        differ_by_node: settings that may differ from node to node, because they name what lies on a node's own disk.
        objective: how the keys begin that decide what is minimised; losses before and after a change do not compare.
        meanings: key -> what `--help` says of the key for this method, where the comment of the key holds for all
            methods and says too little, or too much, of this one.
    """

    differ_by_node: ClassVar[tuple[str, ...]] = ("init_from",)
    objective: ClassVar[tuple[str, ...]] = ()
    meanings: ClassVar[Mapping[str, str]] = {}

    # directory of the run, on storage that every rank sees
    output: str = "???"
    # training steps [>= 1]
    steps: int = 500_000
    # hours after its start at which a run must have stopped and saved, so that a scheduler's limit does not cut it off;
    # each start counts anew; 0 = no limit [>= 0]
    max_hours: float = 0.0
    # seed of the initial weights and of the noise in a step [0 ... 2**63 - 1]
    seed: int = 0
    # directory to take the initial weights from, not beside fork_from; empty = random weights
    init_from: str = ""
    # another run to begin from with its whole state, RUN or RUN@STEP (its output directory, or one of its checkpoints);
    # empty = none
    fork_from: str = ""
    # cuda (an NVIDIA GPU for each rank), cpu, or auto = a GPU where the machine has one; one that torch cannot use is
    # refused
    device: Device = Device.auto
    # fp32, bf16, or fp16 (GPU only)
    precision: Precision = Precision.bf16
    # let fp32 matrix products on a GPU round to TF32
    tf32: bool = True
    # minutes a rank waits for the others before the run is given up [> 0]
    collective_timeout: float = 15.0
    # exit status after a stop on request or by max_hours; a scheduler that takes 0 for the end of training needs
    # another, e.g. 75 [0 or 3 ... 125]
    preempted_status: int = 0
    optim: SkipConfig = field(default_factory=SkipConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        _check_texts(settings_of(self))
        if not self.output:
            raise ValueError("output= is empty; name a directory")
        self.output = plain_place(self.output, "output")
        if "://" in self.output:
            raise ValueError(
                f"output={self.output} must be a directory of this machine or of a shared file system; checkpoints go "
                "to a store with checkpoint.upload=s3://BUCKET/RUN"
            )
        for key, what in (("init_from", "model"), ("fork_from", "checkpoint")):
            place = plain_place(getattr(self, key), key)
            if "://" in place:
                raise ValueError(
                    f"{key}={place} must be a directory of this machine or of a shared file system; copy the {what} "
                    "there"
                )
            setattr(self, key, expanduser(place))
        self.output = expanduser(self.output)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.max_hours < 0:
            raise ValueError(f"max_hours={self.max_hours} must not be negative; set max_hours=0 for no limit")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie between 0 and 2**63 - 1")
        if self.collective_timeout <= 0:
            raise ValueError(f"collective_timeout={self.collective_timeout} must be positive (minutes)")
        self.watchdog.check_below(self.collective_timeout)
        if not 0 <= self.preempted_status <= 125 or self.preempted_status in (1, 2):
            raise ValueError(
                f"preempted_status={self.preempted_status} must be 0 or 3 ... 125 and mean nothing else; set 0 or 75"
            )

    def check_device(self, device: str) -> None:
        """Refuse what the device cannot do. `device` is 'cpu' or 'cuda'."""
        if self.precision is Precision.fp16 and device == "cpu":
            raise ValueError("precision=fp16 needs a GPU: DeepSpeed has no fp16 on the CPU; set precision=bf16 or fp32")

    def files_of_nodes(self, fresh: bool) -> dict[str, str]:
        """The files and directories whose contents must be the same on every node: key -> path, where one is set.

        Args:
            fresh: the run begins here, so that the initial weights are read.
        """
        return {"init_from": self.init_from} if fresh and self.init_from else {}

    @property
    def data_of_node(self) -> tuple[str, str]:
        """The setting that names the data on this node, and its value; a name for messages where there is none."""
        return "what is read", ""

    @property
    def fork_place(self) -> tuple[Path, int | None]:
        """The run or checkpoint of `fork_from`, and the step behind its last `@`; None where there is no step."""
        place, _, step = self.fork_from.rpartition("@")
        return (Path(place), int(step)) if place and step.isdecimal() else (Path(self.fork_from), None)

    @classmethod
    def check_fork(cls, parent: Mapping[str, Any], settings: Mapping[str, Any], step: int) -> None:
        """Refuse a fork whose settings do not go with the state of its parent. A method says more.

        Args:
            parent, settings: every setting of the parent and of the fork by its dotted key.
            step: steps that the parent had done.
        Raises:
            ValueError: naming the keys and the remedy.
        """

    @classmethod
    def identity(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that decide what a run is, and therefore may not change when the run goes on.

        Args:
            settings: every setting of a run by its dotted key, as in its config.yaml.
        Returns:
            Key -> the value, or that property of the value which may not change.
        """
        return {"seed": settings["seed"]}


def _check_texts(settings: Mapping[str, Any]) -> None:
    """Refuse texts that the config.yaml of a checkpoint cannot hold, because it is read as a file from outside.

    Args:
        settings: every setting by its dotted key.
    Raises:
        ValueError: naming the setting.
    """
    for key, value in settings.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if "${" in text:
                raise ValueError(f"{key}={text} holds ${{...}}, which nothing replaces here; write what it stands for")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{key}={text!a} is not UTF-8; rename what it names") from None
