"""How well held-out clips are rebuilt, measured during training with the functions of `trainer.evaluation`.

The windows are those of `launch/evaluate.py --split SPLIT --max-windows CLIPS`: spread evenly over the split, the same
every time, from posterior means. Each rank takes a contiguous part, and the mean is over the windows in their order, so
it does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.read.config import DataConfig
from data_pipeline.read.sweep import ClipSweep, iterate_clips
from model.lpips import LPIPS
from trainer.config.running import ClipValidationConfig
from trainer.distributed import Ranks
from trainer.evaluation.frechet import VideoFeatures, distance_of
from trainer.evaluation.metrics import window_values

Rebuild = Callable[[Tensor], Tensor]
"""Clips [B, 3, T, H, W] in [0, 1] -> their reconstructions."""


@dataclass
class _Measured:
    """What one rank has measured in a split: the metrics of its windows, and the features of FVD."""

    values: dict[str, list[float]] = field(default_factory=dict)
    real: list[NDArray[np.floating]] = field(default_factory=list)
    fake: list[NDArray[np.floating]] = field(default_factory=list)
    complete: bool = True


class Validation:
    """The validation pass of one rank. Every rank makes every call.

    Args:
        config: how much of which splits.
        data: shape and place of the clips, as in training.
        batch: clips put through the networks together.
        perceptual: perceptual networks on the device, by the names of their metrics.
        ranks: among which the windows are divided.
    Raises:
        ValueError: the dataset has no such split, or `validation.fvd` is no network.
    """

    def __init__(
        self,
        config: ClipValidationConfig,
        data: DataConfig,
        *,
        batch: int,
        perceptual: Mapping[str, LPIPS],
        ranks: Ranks,
    ) -> None:
        self.config, self.perceptual, self.ranks = config, perceptual, ranks
        self.splits = {split: self._sweep(split, data, batch) for split in config.splits}
        self.features: VideoFeatures | None = None
        if config.fvd:
            self.features = VideoFeatures(config.fvd, ranks.device, "validation.fvd=")
        self._fixed: Tensor | None = None

    def _sweep(self, split: str, data: DataConfig, batch: int) -> ClipSweep:
        config = self.config
        try:
            sweep = iterate_clips(
                data,
                split,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                windows="all",
                batch_size=batch,
                limit=config.clips,
            )
        except ValueError as error:
            raise ValueError(
                f"validation.every={config.every} wants clips of the split {split!r}: {error}. Build the shards "
                "with a larger split.val, choose other validation.splits, or set validation.every=0"
            ) from error
        if config.fvd and sweep.total < 2:
            raise ValueError(
                f"validation.fvd needs two windows of the split {split!r}, and there is one; leave it empty"
            )
        return sweep

    def describe(self) -> list[str]:
        """For each split a line that says what is read of it, and what is left out and why."""
        return [sweep.describe() for sweep in self.splits.values()]

    def fixed_clips(self, count: int) -> Tensor:
        """The first windows of this rank in the first split: the same ones at every time of a run.

        Returns:
            uint8 [at most `count`, 3, T, H, W] on the host; those that cannot be read are left out.
        """
        if self._fixed is None:
            sweep = next(iter(self.splits.values()))
            found = [sweep.read_clips(first).video for first in sweep.firsts(count)]
            self._fixed = torch.cat(found)[:count] if found else torch.empty(0)
        return self._fixed

    def run(self, rebuild: Rebuild, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """Measure.

        Args:
            rebuild: ranks may call it unequally often.
            stop_requested: whether this rank has been asked to stop, in which case the pass is given up.
        Returns:
            On every rank, for each split (`val_psnr`): means over windows of psnr, ssim and the perceptual metrics, fvd
            where there is a network for it, how many windows there were, and how many of them could not be read. None
            where a rank gave up.
        """
        found: dict[str, float] = {}
        for split, sweep in self.splits.items():
            parts = self.ranks.gather(self._measure(sweep, rebuild, stop_requested))
            if not all(part.complete for part in parts):
                return None
            found |= {f"{split}_{name}": value for name, value in _together(parts, sweep.total).items()}
        return found

    def _measure(self, sweep: ClipSweep, rebuild: Rebuild, stop_requested: Callable[[], bool]) -> _Measured:
        found = _Measured()
        for clips in sweep:
            if stop_requested():
                found.complete = False
                break
            if not len(clips.video):
                continue
            real = clips.video.to(self.ranks.device).float() / 255
            fake = rebuild(real)
            for name, of_windows in window_values(real, fake, self.perceptual).items():
                found.values.setdefault(name, []).extend(of_windows)
            if self.features is not None:
                found.real.append(self.features(real))
                found.fake.append(self.features(fake))
        return found


def _together(parts: list[_Measured], total: int) -> dict[str, float]:
    """The measurements of all ranks' windows, in the order of the windows."""
    names = dict.fromkeys(name for part in parts for name in part.values)
    values = {name: [value for part in parts for value in part.values.get(name, [])] for name in names}
    count = len(values["psnr"]) if values else 0
    means = {name: math.fsum(found) / len(found) for name, found in values.items()}
    real = [rows for part in parts for rows in part.real]
    fake = [rows for part in parts for rows in part.fake]
    if real and count > 1:
        means["fvd"] = distance_of(np.concatenate(real), np.concatenate(fake))
    return means | {"windows": float(count), "unreadable": float(total - count)}
