"""Settings of a dataset of latents that decide its contents; a leaf, so that settings load nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from data_pipeline.dataset.config import LatentDtype


class WindowChoice(StrEnum):
    """How the windows of a clip are chosen."""

    all = "all"
    first = "first"
    stride = "stride"
    random = "random"


@dataclass(kw_only=True)
class WindowsConfig:
    """Which windows of each clip are encoded. Latents of another window cannot be cut out of those that are stored."""

    # all (as many as fit side by side, from the first frame on), first (one from the first frame on), stride (one every
    # windows.every frames), or random (windows.count different ones, drawn for each clip from windows.seed)
    choose: WindowChoice = WindowChoice.all
    every: int = 0  # with choose=stride: stored frames from the start of one window to the start of the next [>= 0]
    count: int = 0  # with choose=random: windows of each clip; a clip with fewer places gives a window of each [>= 0]
    seed: int = 0  # with choose=random: of the draws [0 ... 2**63 - 1]
    mirrored: bool = False  # encode each window a second time with left and right exchanged
    frames: int = 0  # frames of a window; 0 takes as many as the model takes at most [>= 0]
    frame_stride: int = 1  # take every n-th stored frame [>= 1]
    # scale the stored short side to this before the square of the model's size is cropped from the middle; 0 crops
    # stored pixels as they are [>= 0]
    resize: int = 0

    def __post_init__(self) -> None:
        for key, least in (("every", 0), ("count", 0), ("seed", 0), ("frames", 0), ("frame_stride", 1), ("resize", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"windows.{key}={getattr(self, key)} must be at least {least}")
        if self.seed >= 2**63:
            raise ValueError(f"windows.seed={self.seed} must be below 2**63")
        for key, choice in (("every", WindowChoice.stride), ("count", WindowChoice.random)):
            value = getattr(self, key)
            if (value > 0) != (self.choose is choice):
                raise ValueError(
                    f"windows.{key}={value} with windows.choose={self.choose}: set windows.{key} with "
                    f"windows.choose={choice}, to at least 1, and leave it 0 with all others"
                )

    def plan_settings(self, frames: int, image_size: int) -> dict[str, Any]:
        """Setting -> value of all that decides the windows.

        Args:
            frames: of a window, where `self.frames` leaves it to the model.
            image_size: side of the model's square in pixels.
        """
        return {
            "choose": self.choose.value,
            "every": self.every,
            "count": self.count,
            "seed": self.seed if self.choose is WindowChoice.random else 0,
            "mirrored": self.mirrored,
            "frames": self.frames or frames,
            "frame_stride": self.frame_stride,
            "image_size": image_size,
            "resize": self.resize,
        }


@dataclass(kw_only=True)
class StoredConfig:
    """What is stored of each window: the means of the posteriors, and how exactly."""

    dtype: LatentDtype = LatentDtype.fp16  # fp32, fp16 or bf16; what rounding loses is measured and recorded
    logvar: bool = False  # store the log-variances of the posteriors, too
