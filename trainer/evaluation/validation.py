"""How well held-out clips are rebuilt, measured during training with the functions of `trainer.evaluation`.

The windows are those of `launch/evaluate.py --split SPLIT --max-windows CLIPS`: spread evenly over the split, the same
every time, from posterior means. Each rank takes a contiguous part, and the mean is over the windows in their order, so
it does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from data_pipeline.read.config import DataConfig
from data_pipeline.read.sweep import ClipSweep, iterate_clips
from model.lpips import LPIPS
from trainer.config.running import ClipValidationConfig
from trainer.distributed import Ranks
from trainer.evaluation.metrics import window_values


class Validation:
    """The validation pass of one rank. Every rank makes every call.

    Args:
        config: how much of which split.
        data: shape and place of the clips, as in training.
        batch: clips put through the networks together.
        perceptual: perceptual networks on the device, by the names of their metrics.
        ranks: among which the windows are divided.
    Raises:
        ValueError: the dataset has no such split.
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
        try:
            self.clips: ClipSweep = iterate_clips(
                data,
                config.split,
                rank=ranks.rank,
                world_size=ranks.world_size,
                windows="all",
                batch_size=batch,
                limit=config.clips,
            )
        except ValueError as error:
            raise ValueError(
                f"validation.every={config.every} wants clips of the split {config.split!r}: {error}. Build the shards "
                "with a larger split.val, choose another validation.split, or set validation.every=0"
            ) from error

    def run(self, rebuild: Callable[[Tensor], Tensor], stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """Measure.

        Args:
            rebuild: clips [B, 3, T, H, W] in [0, 1] -> their reconstructions; ranks may call it unequally often.
            stop_requested: whether this rank has been asked to stop, in which case the pass is given up.
        Returns:
            On every rank: means over windows of psnr, ssim and the perceptual metrics; how many windows there were,
            and how many of them could not be read. None where a rank gave up.
        """
        values: dict[str, list[float]] = {}
        complete = True
        for clips in self.clips:
            if stop_requested():
                complete = False
                break
            if len(clips.video):
                real = clips.video.to(self.ranks.device).float() / 255
                for name, of_windows in window_values(real, rebuild(real), self.perceptual).items():
                    values.setdefault(name, []).extend(of_windows)
        parts = self.ranks.gather((complete, values))
        if not all(done for done, _ in parts):
            return None
        return _means([part for _, part in parts], self.clips.total)


def _means(parts: list[dict[str, list[float]]], total: int) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part)
    together = {name: [value for part in parts for value in part.get(name, [])] for name in names}
    count = len(together["psnr"]) if together else 0
    means = {name: math.fsum(values) / len(values) for name, values in together.items()}
    return means | {"windows": float(count), "unreadable": float(total - count)}
