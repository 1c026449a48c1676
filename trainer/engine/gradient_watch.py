"""Finds gradients that are not finite. The device looks at them; their names are reported at the next log step."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Gradients(NamedTuple):
    """Which of a network's gradients were finite in the last step.

    Attributes:
        names: of the weights whose gradients were looked at.
        finite: bool [len(names)], on the device.
    """

    names: list[str]
    finite: Tensor


class GradientWatch:
    """While it is switched on, looks at every gradient of a network as soon as it is computed."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
        self._handles: list[RemovableHandle] = []
        self._sums: dict[str, Tensor] = {}

    def switch(self, on: bool) -> None:
        """Begin or end looking."""
        if on and not self._handles:
            self._handles = [weight.register_hook(partial(self._note, name)) for name, weight in self._parameters]
        elif not on and self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _note(self, name: str, grad: Tensor) -> None:
        total = grad.detach().sum(dtype=torch.float32)  # one kernel; not finite where any element is not
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def take(self) -> Gradients | None:
        """What was seen since the last call; None where the watch was off."""
        sums, self._sums = self._sums, {}
        names = [name for name, _ in self._parameters if name in sums]
        return Gradients(names, torch.isfinite(torch.stack([sums[name] for name in names]))) if sums else None
