"""The exact sums of a unit of latents, made of the tensors as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from data_pipeline.dataset.exact_sums import ChannelSums, Float32Array
from data_pipeline.dataset.latent_records import STATISTICS_SPLIT, Rounding
from data_pipeline.dataset.latent_tensors import MEANS

_TOGETHER = 64
"""Samples that are added at once, for speed: exact sums do not depend on it."""


class UnitSums:
    """The sums of one unit while its samples are added."""

    def __init__(self) -> None:
        self._sums: dict[str, ChannelSums] = {}
        self._rounding: dict[str, Rounding] = {}
        self._values: dict[str, list[Float32Array]] = {}  # not yet added
        self._lost: dict[str, list[Float32Array]] = {}

    def add_values(self, values: Mapping[str, Float32Array], split: str) -> None:
        """Add the stored values of one sample to the statistics, if its split belongs to them."""
        if split != STATISTICS_SPLIT:
            return
        for name in MEANS:
            waiting = self._values.setdefault(name, [])
            waiting.append(values[name].reshape(len(values[name]), -1))
            if len(waiting) == _TOGETHER:
                self._add_values(name)

    def add_rounding(self, lost: Mapping[str, Float32Array]) -> None:
        """Add what rounding lost of one sample: for each tensor the differences between it and what is stored."""
        for name, difference in lost.items():
            waiting = self._lost.setdefault(name, [])
            waiting.append(difference.reshape(1, -1))
            if len(waiting) == _TOGETHER:
                self._add_lost(name)

    @property
    def sums(self) -> dict[str, ChannelSums]:
        """Tensor of means -> the sums over all samples of STATISTICS_SPLIT; empty where there is none."""
        for name in self._values:
            self._add_values(name)
        return dict(self._sums)

    @property
    def rounding(self) -> dict[str, Rounding]:
        """Stored tensor -> what rounding lost over all samples."""
        for name in self._lost:
            self._add_lost(name)
        return dict(self._rounding)

    def _add_values(self, name: str) -> None:
        waiting = self._values[name]
        if waiting:
            sums = ChannelSums.of(np.concatenate(waiting, axis=1))
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            waiting.clear()

    def _add_lost(self, name: str) -> None:
        waiting = self._lost[name]
        if waiting:
            lost = rounding_of(np.concatenate(waiting, axis=1))
            self._rounding[name] = self._rounding[name] + lost if name in self._rounding else lost
            waiting.clear()


def rounding_of(difference: Float32Array) -> Rounding:
    """What rounding lost, from the differences of any shape."""
    flat = difference.reshape(1, -1)
    return Rounding(
        values=flat.size, largest=float(np.abs(flat).max(initial=0.0)), squares=ChannelSums.of(flat).squares[0]
    )


def sums_of(samples: Iterable[tuple[Mapping[str, Float32Array], str]]) -> dict[str, ChannelSums]:
    """The sums of some samples, of each its stored values and its split."""
    total = UnitSums()
    for values, split in samples:
        total.add_values(values, split)
    return total.sums
