"""What a log step says of a network's update, by its parts: how large the gradient was, and how far the weights moved.

It is measured at log steps only: it gathers gradients, and copies this rank's masters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.engine.engine import Engine

PartOf = Callable[[str], str]
"""The name of a weight -> the name of the part of the network that it belongs to."""


@torch.no_grad()
def gradient_norms(engine: Engine, part_of: PartOf) -> dict[str, Tensor]:
    """L2 norms of the step's gradient, before clipping, by part of the network.

    Every rank calls it, between the last `backward` of a step and its `step`. The squares of the norms add up to that
    of `Engine.outcome`.
    """
    sums: dict[str, Tensor] = {}
    for name, weight in engine.learning().items():
        gradient = _gradient(engine, weight)
        if gradient is not None:
            part = part_of(name)
            square = gradient.to(engine.engine.device).float().square().sum()
            sums[part] = sums[part] + square if part in sums else square
    scale = engine.scale_used or 1.0
    return {part: total.sqrt() / scale for part, total in sums.items()}


def _gradient(engine: Engine, weight: nn.Parameter) -> Tensor | None:
    """The whole gradient of a weight, averaged over ranks; a collective call at ZeRO 1 to 3. None: it had none."""
    if engine.plain:
        return weight.grad
    from deepspeed.utils import safe_get_full_grad

    gradient: Tensor | None = safe_get_full_grad(weight)
    return gradient


class Moved:
    """How far a step moves the weights: made before the step, asked after it. It copies this rank's masters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = [master.detach().clone() for master in engine.masters()]

    @torch.no_grad()
    def ratios(self, part_of: PartOf) -> dict[str, Tensor]:
        """Part of the network -> the L2 norm of the update over that of the weights before it; every rank calls it.

        A part whose weights are all zero has the ratio infinity; a skipped step has 0.
        """
        engine = self._engine
        places = engine.places()
        parts = list(dict.fromkeys(part_of(name) for name in engine.learning()))
        sums = torch.zeros(2, len(parts), dtype=torch.float64, device=engine.engine.device)
        flats = [master.detach().view(-1) for master in engine.masters()]
        for name, place in places.items():
            stretch = slice(place.offset, place.offset + place.length)
            before = self._before[place.flat].view(-1)[stretch].double()
            update = flats[place.flat][stretch].double() - before
            column = parts.index(part_of(name))
            sums[0, column] += update.square().sum().to(sums.device)
            sums[1, column] += before.square().sum().to(sums.device)
        if engine.stage > 0 and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        return dict(zip(parts, (sums[0] / sums[1]).sqrt().unbind(), strict=True))
