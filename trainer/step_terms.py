"""What a step's micro-batches say, averaged; and the factor that makes a step with a non-finite loss a skipped one."""

from __future__ import annotations

import torch
from torch import Tensor

from model.precision import at_least_fp32


def one_if_finite(loss: Tensor) -> Tensor:
    """1, or NaN where the loss is not finite: as a factor it makes all gradients NaN, so that the step is skipped."""
    return torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


class TermMeans:
    """Terms of the micro-batches of one step, averaged over those micro-batches that have the term."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, **terms: Tensor) -> None:
        """Add terms of one micro-batch, 0-dim tensors; their graphs are dropped."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else at_least_fp32(value.detach())
            self.counts[name] = self.counts.get(name, 0) + 1

    def result(self) -> dict[str, Tensor]:
        """Name -> mean, 0-dim, fp32 at least."""
        counts = self.counts
        return {name: value if counts[name] == 1 else value / counts[name] for name, value in self.sums.items()}
