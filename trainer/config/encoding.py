"""Settings of encoding a dataset of clips into latents: from what, with which model, to where, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.build.config import DatasetRunConfig, UnitResources
from data_pipeline.latents.config import StoredConfig, WindowsConfig
from data_pipeline.store.open import plain_place
from trainer.config.learning import Precision
from trainer.config.run import Device


@dataclass(kw_only=True)
class ComputeConfig:
    """How the model computes. All of it can change the last bits of a latent, so an output keeps it for ever."""

    batch: int = 8  # windows that go through the model together; the last ones of a unit may be fewer [>= 1]
    threads: int = 1  # threads of torch in each worker [>= 1]
    precision: Precision = Precision.fp32  # type of weights and activations: fp32, bf16 or fp16; posteriors are fp32

    def __post_init__(self) -> None:
        for key in ("batch", "threads"):
            if getattr(self, key) < 1:
                raise ValueError(f"encode.{key}={getattr(self, key)} must be at least 1")

    def plan_settings(self) -> dict[str, Any]:
        """Setting -> value, as the plan records it."""
        return {"batch": self.batch, "threads": self.threads, "precision": self.precision.value}


@dataclass(kw_only=True)
class ModelRunConfig(DatasetRunConfig):
    """How units are run that need a model. Nothing here changes what is made, but `device` may change its last bits."""

    unit_cpus: float = 1.0  # cores that Ray sets aside for one worker, for all of its threads together [>= 0]
    unit_gpus: float = 0.0  # GPUs that Ray sets aside for one worker; a part of one lets several share it [>= 0]
    # memory that Ray sets aside for one worker, for its autoscaler to see; 0 asks for none [>= 0]
    unit_memory_bytes: int = 0
    # what a worker computes on: cuda, cpu, or auto = a GPU where run.unit_gpus asks for one, else the processor
    device: Device = Device.auto

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("unit_cpus", "unit_gpus", "unit_memory_bytes"):
            if getattr(self, key) < 0:
                raise ValueError(f"run.{key}={getattr(self, key)} must not be negative")
        if not self.unit_cpus and not self.unit_gpus:
            raise ValueError("run.unit_cpus=0 needs run.unit_gpus above 0: Ray would start all workers at once")
        if self.device is Device.cuda and not self.unit_gpus:
            raise ValueError("run.device=cuda needs run.unit_gpus above 0, or Ray gives no worker a GPU")

    @property
    def uses_gpu(self) -> bool:
        """Whether a worker computes on a GPU."""
        return self.device is Device.cuda or (self.device is Device.auto and self.unit_gpus > 0)

    @property
    def resources(self) -> UnitResources:
        """What Ray sets aside for one worker."""
        return UnitResources(cpus=self.unit_cpus, gpus=self.unit_gpus, memory_bytes=self.unit_memory_bytes)


@dataclass(kw_only=True)
class EncodingRunConfig(ModelRunConfig):
    """How an encoding is carried out. Nothing here changes the latents, but `device` may change their last bits."""

    decoders: int = 1  # threads of each worker that decode clips beside the model [>= 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoders < 1:
            raise ValueError(f"run.decoders={self.decoders} must be at least 1")


@dataclass(kw_only=True)
class EncodingConfig:
    """One dataset of latents: by which model, from which clips, to where, how."""

    model: str = "???"  # model directory, or its s3:// address; every worker reads it from there
    shards: str = "???"  # dataset of clips made by launch/build_shards.py: a folder or s3://bucket/prefix
    output: str = "???"  # a folder or s3://bucket/prefix
    shard_bytes: int = 256_000_000  # a shard of latents is closed before it grows beyond this [>= 1000000]
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    stored: StoredConfig = field(default_factory=StoredConfig)
    encode: ComputeConfig = field(default_factory=ComputeConfig)
    run: EncodingRunConfig = field(default_factory=EncodingRunConfig)

    def __post_init__(self) -> None:
        for key in ("model", "shards", "output"):
            if not getattr(self, key):
                raise ValueError(f"{key}= is empty; name a folder or s3://bucket/prefix")
            setattr(self, key, plain_place(getattr(self, key), key))
        if self.shard_bytes < 1_000_000:
            raise ValueError(f"shard_bytes={self.shard_bytes} must be at least 1000000")
