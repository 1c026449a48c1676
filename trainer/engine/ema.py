"""Exponential moving average of a network's fp32 masters. Each rank holds the average of its own shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer.engine.saved_files import load_saved
from trainer.engine.torch_private import copy_all, move_towards


class Ema:
    """Average of the tensors in `masters`, which training changes in place.

    Args:
        masters: this rank's fp32 weights or shards of weights.
    """

    def __init__(self, masters: Sequence[Tensor]) -> None:
        self.masters = [master.detach() for master in masters]
        self.averages = [master.clone() for master in self.masters]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the weights: average = decay x average + (1 - decay) x weights."""
        move_towards(self.averages, self.masters, 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the masters hold the average, so that it can be read; no step may be taken then."""
        kept = [master.clone() for master in self.masters]
        copy_all(self.masters, self.averages)
        try:
            yield
        finally:
            copy_all(self.masters, kept)

    def save(self, file: Path) -> None:
        """Write this rank's average."""
        torch.save([average.cpu() for average in self.averages], file)

    def load(self, file: Path) -> None:
        """Undo `save`. Without the file, because no average was kept then, the average starts from the current weights.

        Raises:
            ValueError: the file is of other shards.
        """
        if not file.is_file():
            copy_all(self.averages, self.masters)
            return
        saved = load_saved(file)
        if [item.shape for item in saved] != [item.shape for item in self.averages]:
            raise ValueError(
                f"{file} is the average of other shards; resume on the same number of ranks and ZeRO stage"
            )
        copy_all(self.averages, [item.to(self.averages[0].device) for item in saved])
