"""The loss on held-out clips, at fixed times and with fixed noise, so that two passes compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from model.dit import DiT
from trainer.diffusion.condition import condition_of, latents_of
from trainer.diffusion.data import LatentBatch
from trainer.diffusion.draws import PURPOSE_VALIDATION, draw_clip, draw_noise
from trainer.diffusion.loss import Share, clip_losses
from trainer.diffusion.process import Process
from trainer.distributed import Ranks


@dataclass
class _Measured:
    """Losses of this rank's clips, a clip at each time."""

    structure: list[float] = field(default_factory=list)
    dynamics: list[float] = field(default_factory=list)
    complete: bool = True


@dataclass(frozen=True)
class HeldOutLoss:
    """Measures a network. The k-th of K times is the quantile (k + 1/2) / K of those that training draws.

    Attributes:
        batches: this rank's share of the clips.
        times: K.
        seed: of the run.
    """

    batches: Iterable[LatentBatch]
    process: Process
    share: Share
    times: int
    seed: int
    ranks: Ranks

    @torch.no_grad()
    def __call__(self, network: DiT, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """Means over clips and times, `val_loss` and its two parts; no condition is dropped. Every rank calls it.

        Args:
            network: in evaluation mode, on the device.
            stop_requested: whether this rank has been asked to stop, in which case the pass is given up.
        Returns:
            The same on every rank, whatever their number; None where a rank gave up.
        """
        parts = self.ranks.gather(self._measure(network, stop_requested))
        if not all(part.complete for part in parts):
            return None
        structure, dynamics = (
            [loss for part in parts for loss in getattr(part, name)] for name in ("structure", "dynamics")
        )
        count = len(structure)
        assert count, "the builder refuses a validation without clips"
        # `fsum` is exact, so the order of the clips, and with it the number of ranks, does not matter.
        means = [math.fsum(losses) / count for losses in (structure, dynamics)]
        total = self.share.structure * means[0] + (1 - self.share.structure) * means[1]
        return {"val_loss": total, "val_loss_structure": means[0], "val_loss_dynamics": means[1]}

    def _measure(self, network: DiT, stop_requested: Callable[[], bool]) -> _Measured:
        found, device = _Measured(), self.ranks.device
        for batch in self.batches:
            clean = network.normaliser.normalise(latents_of(batch, device))
            condition = condition_of(batch, network, device)
            for number in range(self.times):
                if stop_requested():
                    found.complete = False
                    return found
                seeds = [draw_clip(self.seed, number, key, PURPOSE_VALIDATION).seed for key in batch.keys]
                times = self.process.times([(number + 0.5) / self.times] * len(seeds))
                noise = draw_noise(seeds, network.space, device)
                losses = clip_losses(network, self.process, clean, noise, times, condition)
                found.structure.extend(losses.structure.tolist())
                found.dynamics.extend(losses.dynamics.tolist())
        return found
