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
    """Sums and counts of the terms since the last reading, on the device.

    All terms of a step are one tensor here, because a kernel for each term would cost more than the sums.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tables: dict[tuple[str, ...], Tensor] = {}  # by the terms of a step: fp64 [2, terms], sums and counts
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
        names = tuple(sorted(terms))
        values = torch.stack([terms[name] for name in names]).double()
        finite = torch.isfinite(values)
        table = torch.stack([values.masked_fill(~finite, 0.0), finite.double()])
        self.tables[names] = self.tables[names] + table if names in self.tables else table
        return dict(zip(names, finite.unbind(), strict=True))

    def read(self, ranks: int) -> Reading:
        """The means over steps and ranks; the sums then start at zero again. Here the host waits for the device."""
        groups = sorted(self.tables)
        table = torch.cat([self.tables[names] for names in groups], dim=1)
        if ranks > 1:
            dist.all_reduce(table)
        flat = torch.cat([table.flatten(), self.skipped.double()[None], self.in_a_row.double()[None]]).tolist()
        self.tables = {}
        self.skipped = torch.zeros_like(self.skipped)
        return Reading(_means(groups, flat[:-2]), int(flat[-2]), int(flat[-1]))

    def clear(self) -> None:
        """Set everything to zero, because the run was set back."""
        self.tables = {}
        self.skipped, self.in_a_row = torch.zeros_like(self.skipped), torch.zeros_like(self.in_a_row)


def _means(groups: list[tuple[str, ...]], flat: list[float]) -> dict[str, float]:
    """Means by name.

    Args:
        groups: the names of the terms of steps that had the same ones.
        flat: the sums of all groups in a row, then the counts.
    """
    totals: dict[str, float] = {}
    counts: dict[str, float] = {}
    names = [name for group in groups for name in group]
    for name, total, count in zip(names, flat[: len(names)], flat[len(names) :], strict=True):
        totals[name] = totals.get(name, 0.0) + total
        counts[name] = counts.get(name, 0.0) + count
    return {name: totals[name] / n if n else math.nan for name, n in sorted(counts.items())}
