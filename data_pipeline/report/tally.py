"""Distributions and random examples of a stream of any length, in bounded memory."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")
LOG_RANGE = 50.0
"""Largest over smallest value from which a histogram has bins of equal ratio instead of equal width."""


@dataclass(frozen=True)
class Histogram:
    """Bin k holds `counts[k]` values in [edges[k], edges[k + 1]), the last bin its upper edge too."""

    edges: list[float]
    counts: list[int]
    log: bool  # bins of equal ratio


@dataclass
class Tally:
    """Counts values rounded to three significant digits: at most 900 counters for each power of ten."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, values: Iterable[float]) -> None:
        """Count some values. Values that are not finite are not counted."""
        self.counts.update(_three_digits(value) for value in values if math.isfinite(value))

    @property
    def total(self) -> int:
        """The number of values counted."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> float:
        """The smallest value that at least `share` of all values do not exceed. Raises: ValueError without values."""
        if not self.counts:
            raise ValueError("a quantile of no values")
        rank, seen = share * self.total, 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= rank:
                break
        return value

    def histogram(self, bins: int = 32) -> Histogram | None:
        """All values in bins from the smallest to the largest value; None without any value."""
        if not self.counts:
            return None
        values = sorted(self.counts)
        low, high = values[0], values[-1]
        if low == high:
            half = abs(low) / 20 or 0.5
            return Histogram([low - half, low + half], [self.total], log=False)
        log = low > 0 and high / low >= LOG_RANGE
        edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
        edges[0], edges[-1] = low, high  # geomspace may miss them by a rounding error
        counts, _ = np.histogram(values, edges, weights=[self.counts[value] for value in values])
        return Histogram([float(edge) for edge in edges], [int(count) for count in counts], log)


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


class Reservoir(Generic[Item]):
    """`size` items of a stream, drawn without replacement and each with the same chance.

    The same seed and stream give the same draw.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.items: list[Item] = []
        self.offered = 0
        self._size, self._random = size, random.Random(seed)

    def offer(self, item: Item) -> None:
        """Show the next item of the stream (algorithm R: Vitter 1985, "Random sampling with a reservoir")."""
        self.offered += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (position := self._random.randrange(self.offered)) < self._size:
            self.items[position] = item
