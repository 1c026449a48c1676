"""Means of the loss terms since the last log step. They are added up on the device, and a log step reads them once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Reading(NamedTuple):
    """The result of `RunningMeans.read`."""

    means: dict[str, float]  # over steps and ranks; NaN for a term that was finite in no step
    skipped: int  # steps skipped since the last reading
    in_a_row: int  # the last steps that were skipped in a row


class RunningMeans:
    """Sums and counts of the terms since the last reading, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)

    def add(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add one step. A non-finite value is not part of its term's mean.

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
        """The means over steps and ranks; the sums then start at zero again. Here the host waits for the device."""
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
        """Set everything to zero, because the run was set back."""
        self.sums, self.counts = {}, {}
        self.skipped, self.in_a_row = torch.zeros_like(self.skipped), torch.zeros_like(self.in_a_row)
