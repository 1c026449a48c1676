"""The exact sums of a unit of latents, made of the tensors as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data_pipeline.dataset.exact_sums import ChannelSums, Float32Array
from data_pipeline.dataset.latent_records import STATISTICS_SPLIT, Rounding
from data_pipeline.dataset.latent_tensors import MEANS


@dataclass
class UnitSums:
    """The sums of one unit while its samples are added."""

    sums: dict[str, ChannelSums] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)

    def add_values(self, values: Mapping[str, Float32Array], split: str) -> None:
        """Add the stored values of one sample to the statistics, if its split belongs to them."""
        if split != STATISTICS_SPLIT:
            return
        for name in MEANS:
            sums = ChannelSums.of(values[name])
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def add_rounding(self, rounding: Mapping[str, Rounding]) -> None:
        """Add what rounding lost of one sample."""
        for name, lost in rounding.items():
            self.rounding[name] = self.rounding[name] + lost if name in self.rounding else lost


def sums_of(samples: Iterable[tuple[Mapping[str, Float32Array], str]]) -> dict[str, ChannelSums]:
    """The sums of some samples, of each its stored values and its split."""
    total = UnitSums()
    for values, split in samples:
        total.add_values(values, split)
    return total.sums
