"""Terms of the steps since the last log step, added up on the device and read once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Reading(NamedTuple):
    """What a window held."""

    means: dict[str, float]  # over steps and ranks; NaN where no step was finite
    skipped: int  # steps skipped since the last reading
    in_a_row: int  # steps skipped in a row up to now


class RunningMeans:
    """Sums of terms since the last log step, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)

    def add(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add one step. A non-finite value is left out of its term's mean.

        Args:
            terms: 0-dim tensors, `skipped` among them.
        Returns:
            For each term but `skipped`, whether it was finite, on the device.
        """
        terms = dict(terms)
        skipped = terms.pop("skipped")
        self.skipped = self.skipped + skipped
        self.in_a_row = (self.in_a_row + skipped) * skipped
        finite = {name: torch.isfinite(value) for name, value in terms.items()}
        for name, value in terms.items():
            zero = torch.zeros((), device=self.device)
            self.sums[name] = self.sums.get(name, zero) + torch.where(finite[name], value.double(), zero.double())
            self.counts[name] = self.counts.get(name, zero) + finite[name]
        return finite

    def read(self, ranks: int) -> Reading:
        """Average, then start over. The one place where the host waits for the device."""
        names = sorted(self.sums)
        table = torch.stack([self.sums[name] for name in names] + [self.counts[name].double() for name in names])
        if ranks > 1:
            dist.all_reduce(table)
        flat = torch.cat([table, self.skipped.double()[None], self.in_a_row.double()[None]]).tolist()
        sums, counts = flat[: len(names)], flat[len(names) : -2]
        means = {name: total / n if n else math.nan for name, total, n in zip(names, sums, counts, strict=True)}
        self.sums, self.counts = {}, {}
        self.skipped = torch.zeros_like(self.skipped)
        return Reading(means, int(flat[-2]), int(flat[-1]))

    def clear(self) -> None:
        """Forget everything: the run was set back."""
        self.sums, self.counts = {}, {}
        self.skipped, self.in_a_row = torch.zeros_like(self.skipped), torch.zeros_like(self.in_a_row)
