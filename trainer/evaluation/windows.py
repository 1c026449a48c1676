"""The measured windows of a source in the order of their keys, and what follows from them.

Means are sums by `math.fsum` over values in the order of their keys, so neither the number of processes nor the order
in which they finished changes a bit of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.pieces import Features, Piece
from trainer.evaluation.sources import Totals

T = TypeVar("T")

Key = tuple[str, int]
"""Name of the source of a window, and number of its first frame."""


@dataclass(frozen=True)
class Windows:
    """Measured windows, sorted by their keys.

    Attributes:
        keys: of each window; no two are equal.
        intervals, fps: of each window, as in `trainer.evaluation.sources.Window`.
        parts: name of the part in which the source has each window.
        values: name of a metric -> float64 [n].
        features: name of a metric of whole sets -> features in the order of the parts.
        totals: what was read and what could not be, of all parts.
    """

    keys: list[Key] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    fps: list[float] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    features: dict[str, list[Features]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.keys)

    def by_source(self) -> Iterator[tuple[str, slice]]:
        """Each source with the places of its windows."""
        first = 0
        for place in range(1, len(self.keys) + 1):
            if place == len(self.keys) or self.keys[place][0] != self.keys[first][0]:
                yield self.keys[first][0], slice(first, place)
                first = place


def joined(pieces: Iterable[Piece], order: Mapping[str, int], whole: Totals) -> Windows:
    """The windows of pieces.

    Args:
        pieces: in any order.
        order: name of a part -> its place among the parts.
        whole: what is known of all parts together.
    """
    every = sorted(pieces, key=lambda piece: (order[piece.part], piece.number))
    ordered = [piece for piece in every if len(piece)]
    keys = [(source, start) for piece in ordered for source, start in zip(piece.sources, piece.starts, strict=True)]
    places = sorted(range(len(keys)), key=keys.__getitem__)
    columns = {
        name: [value for piece in ordered for value in piece.values[name]]
        for name in (ordered[0].values if ordered else ())
    }
    ends = [piece.totals for piece in every if piece.totals is not None]
    failed = {name: reason for totals in ends for name, reason in totals.failed}  # a clip may lie in several parts
    return Windows(
        keys=[keys[place] for place in places],
        intervals=_chosen([number for piece in ordered for number in piece.intervals], places),
        fps=_chosen([rate for piece in ordered for rate in piece.fps], places),
        parts=_chosen([piece.part for piece in ordered for _ in piece.sources], places),
        values={name: np.array(column, dtype=np.float64)[places] for name, column in columns.items()},
        features={
            name: [piece.features[name] for piece in ordered] for name in (ordered[0].features if ordered else ())
        },
        totals=Totals(
            sources=len({source for source, _ in keys}),
            windows=len(keys),
            left_out_frames=sum(totals.left_out_frames for totals in (whole, *ends)),
            failed=sorted([*whole.failed, *failed.items()]),
            remarks=whole.remarks + [remark for totals in ends for remark in totals.remarks],
        ),
    )


def _chosen(column: Sequence[T], places: Sequence[int]) -> list[T]:
    return [column[place] for place in places]


def mean(values: Iterable[float]) -> float:
    """The mean; the order of the values does not change a bit of it. Raises: ValueError without a value."""
    numbers = list(values)
    if not numbers:
        raise ValueError("a mean needs at least one value")
    return math.fsum(numbers) / len(numbers)


def deviation(values: Iterable[float]) -> float:
    """Standard deviation, the sum of squares divided by n. Raises: ValueError without a value."""
    numbers = list(values)
    middle = mean(numbers)
    return math.sqrt(math.fsum((number - middle) ** 2 for number in numbers) / len(numbers))
