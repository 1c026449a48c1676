"""Which checkpoints stay: the newest, every so many steps, and the best by a term of validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainer.checkpoint.files import superseded
from trainer.config.running import CheckpointConfig

HIGHER_IS_BETTER = ("psnr", "ssim")
"""How the names of such terms end. All other terms are errors or distances."""


@dataclass(frozen=True)
class Best:
    """The best step so far by `checkpoint.best`."""

    step: int
    term: str
    value: float


class Retention:
    """Decides which checkpoints may be removed, on the disk and on the store.

    It is asked by threads as well, while the loop changes the best.

    Args:
        settings: how many stay.
    """

    def __init__(self, settings: CheckpointConfig) -> None:
        self.settings = settings
        self._bests: tuple[Best, ...] = ()  # each better than the one before

    @property
    def best(self) -> Best | None:
        """The best checkpoint that was saved, or is being saved."""
        return self._bests[-1] if self._bests else None

    def better(self, step: int, values: Mapping[str, float]) -> Best | None:
        """What would be the best after a validation pass; None where it is not better or nothing is asked for.

        A value that is not finite is never better.

        Raises:
            ValueError: validation has no such term.
        """
        term = self.settings.best
        if not term:
            return None
        if term not in values:
            raise ValueError(f"checkpoint.best={term} is no term of validation; choose one of {', '.join(values)}")
        value = values[term]
        higher = term.endswith(HIGHER_IS_BETTER)
        best = self.best
        if not math.isfinite(value):  # of a run that has diverged; and state.json, as JSON, could not hold it
            return None
        if best is not None and (value <= best.value if higher else value >= best.value):
            return None
        return Best(step, term, value)

    def add(self, best: Best) -> None:
        """A better checkpoint is saved now. Until it is complete, the one before stays."""
        self._bests = (*self._bests[-1:], best)

    def restore(self, best: Best | None) -> None:
        """Go on as when `best` was the best; by another term, or where nothing is asked for, there is none."""
        self._bests = (best,) if best is not None and best.term == self.settings.best else ()

    def superseded(self, steps: Iterable[int]) -> list[int]:
        """Those of the complete checkpoints `steps` that may be removed."""
        steps = sorted(steps)
        bests = [best.step for best in self._bests if best.step in steps]
        return [
            step for step in superseded(steps, self.settings.keep, self.settings.keep_every) if step not in bests[-1:]
        ]
