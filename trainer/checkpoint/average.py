"""The weights of an engine and their moving average, if there is one: saved into a checkpoint, written as models."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from data_pipeline.store.files import atomic_folder
from model.provenance import Weights
from trainer.checkpoint.exports import average_of
from trainer.checkpoint.zero_files import average_file
from trainer.distributed import Ranks
from trainer.engine.ema import Ema
from trainer.engine.engine import Engine

Write = Callable[[Path, dict[str, Tensor], Weights], None]
"""Writes a model directory from full fp32 weights by name, on the host, and says which weights they are."""


class Averaged:
    """An engine, and the moving average that follows its weights.

    Args:
        engine: of the network.
        ranks: of the run.
        stage: ZeRO stage of the engine.
        decay: of the average; 0 = there is none.
    """

    def __init__(self, engine: Engine, ranks: Ranks, stage: int, decay: float) -> None:
        self.engine, self._ranks = engine, ranks
        self.ema = Ema(engine.masters()) if decay > 0 else None
        # At stage 0 all ranks have the same average, so the main one writes it; otherwise each has its part.
        self._mine = self.ema if ranks.is_main or stage > 0 else None

    def state(self, ema: bool) -> dict[str, Tensor]:
        """The network's fp32 weights, or their moving average, by name on the host; every rank calls it."""
        assert self.ema is not None or not ema
        with self.ema.applied() if ema and self.ema is not None else contextlib.nullcontext():
            return self.engine.full_state()

    @property
    def saved_bytes(self) -> int:
        """Bytes of the tensors that `save` writes on this rank."""
        averages = self._mine.averages if self._mine is not None else []
        return sum(average.numel() * average.element_size() for average in averages)

    def save(self, directory: Path) -> None:
        """Write this rank's part of the average into a checkpoint; every rank calls it."""
        if self._mine is not None:
            self._mine.save(average_file(directory, self._ranks.rank))

    def export(self, directory: Path, write: Write) -> None:
        """Write a model directory of the average with `_ema` behind its name, and then one of the weights themselves.

        `directory` appears last and whole, so where it is, everything is. Every rank calls it, the main one writes.

        Args:
            directory: it does not exist.
            write: called on the main rank only.
        """
        for kind in (Weights.ema, Weights.raw) if self.ema is not None else (Weights.raw,):
            state = self.state(ema=kind is Weights.ema)
            if self._ranks.is_main:
                target = average_of(directory) if kind is Weights.ema else directory
                shutil.rmtree(target, ignore_errors=True)  # only an average, of an export that was cut off
                with atomic_folder(target) as folder:
                    write(folder, state, kind)
