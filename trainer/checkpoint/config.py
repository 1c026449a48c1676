"""When checkpoints are written, which stay, and where copies go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from data_pipeline.storage import open_store


class Resume(Enum):
    """What to do with checkpoints found in the output directory."""

    auto = "auto"
    never = "never"


@dataclass(kw_only=True)
class CheckpointConfig:
    """When the whole state is written to OUTPUT/checkpoints."""

    # steps between checkpoints; one is always written at the end and when the run is told to stop
    every: int = 1_000
    # complete checkpoints to keep, the newest
    keep: int = 3
    # besides these, every checkpoint whose step is a multiple of this stays; 0 = none
    keep_every: int = 0
    # where each checkpoint is copied to in the background, e.g. s3://bucket/run (one for each run); empty = nowhere
    upload: str = ""
    # seconds to wait for the last upload at the end of training
    upload_wait: float = 600.0
    # seconds to wait for it when the run is told to stop
    upload_wait_stopped: float = 20.0
    # auto = go on from the newest complete checkpoint; never = refuse to start where one exists
    resume: Resume = Resume.auto

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"checkpoint.every={self.every} must be at least 1")
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep={self.keep} must be at least 1")
        if self.keep_every < 0:
            raise ValueError(f"checkpoint.keep_every={self.keep_every} must not be negative; 0 keeps none besides")
        if self.upload_wait < 0 or self.upload_wait_stopped < 0:
            raise ValueError("checkpoint.upload_wait and checkpoint.upload_wait_stopped must not be negative (seconds)")
        if self.upload:
            try:
                open_store(self.upload)
            except ValueError as error:
                raise ValueError(f"checkpoint.upload: {error}") from error
