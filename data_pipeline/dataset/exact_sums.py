"""Exact sums of floating-point numbers, so that no order of adding and no number of workers changes a result.

A float is a whole number times a power of two. The sums are kept as whole numbers of Python, which never round: of
values in units of 2**-149 (the smallest float32 above zero), of squares in units of 2**-298. Adding two sums is adding
integers. Mean and deviation are rounded once, when they are asked for. Names: N samples, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset.fields import Fields

UNIT_EXPONENT = 149
"""Sums count units of 2**-149, sums of squares units of 2**-298."""
_MANTISSA = 24  # bits of a float32's significand
_EXPONENTS = UNIT_EXPONENT + 128  # of np.frexp: from -148, for the smallest float32, to 128
_MOST = 1 << 28  # values added at once: a bin then stays below 2**53, where float64 still counts exactly

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ChannelSums:
    """Sums of the values of each channel, and of their squares.

    Attributes:
        values: how many values each channel has.
        sums: [C], in units of 2**-149.
        squares: [C], in units of 2**-298.
    """

    values: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @staticmethod
    def of(array: Float32Array) -> ChannelSums:
        """The sums of an array [C, ...] over all axes but the first.

        Raises: ValueError when a value is infinite or not a number.
        """
        if not np.isfinite(array).all():
            raise ValueError("infinite values and values that are no numbers have no sum")
        flat = np.ascontiguousarray(array, np.float32).reshape(len(array), -1)
        total = ChannelSums.nothing(len(flat))
        step = max(1, _MOST // max(1, len(flat)))
        for begin in range(0, flat.shape[1], step):
            total += _sums_of(flat[:, begin : begin + step])
        return total

    @staticmethod
    def nothing(channels: int) -> ChannelSums:
        """The sums of no value."""
        return ChannelSums(values=0, sums=(0,) * channels, squares=(0,) * channels)

    def __add__(self, other: ChannelSums) -> ChannelSums:
        assert len(self.sums) == len(other.sums), "sums of different numbers of channels cannot be added"
        return ChannelSums(
            values=self.values + other.values,
            sums=tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def means(self) -> list[float]:
        """The mean of each channel, [C], the float64 nearest to the exact one; empty where there is no value."""
        return [float(self._mean(total)) for total in self.sums] if self.values else []

    def deviations(self) -> list[float]:
        """The standard deviation (population) of each channel, [C]: the root of the float64 nearest to the variance."""
        if not self.values:
            return []
        return [
            math.sqrt(float(Fraction(squares, self.values << 2 * UNIT_EXPONENT) - self._mean(total) ** 2))
            for total, squares in zip(self.sums, self.squares, strict=True)
        ]

    def _mean(self, total: int) -> Fraction:
        return Fraction(total, self.values << UNIT_EXPONENT)

    def to_json(self) -> dict[str, Any]:
        """The stored object. The sums are hexadecimal texts, because they have more digits than JSON readers keep."""
        return {
            "values": self.values,
            "sums": [format(total, "x") for total in self.sums],
            "squares": [format(total, "x") for total in self.squares],
        }

    @staticmethod
    def from_json(fields: Fields) -> ChannelSums:
        """Raises: FieldError for a missing or wrongly typed field, or for two lists of different lengths."""
        sums, squares = _integers(fields, "sums"), _integers(fields, "squares")
        if len(sums) != len(squares):
            raise fields.wrong("squares", f"a list of {len(sums)} sums", len(squares))
        return ChannelSums(values=fields.integer("values"), sums=sums, squares=squares)


def _integers(fields: Fields, name: str) -> tuple[int, ...]:
    texts: Sequence[str] = fields.texts(name)
    try:
        return tuple(int(text, 16) for text in texts)
    except ValueError:
        raise fields.wrong(name, "a list of whole numbers in hexadecimal", texts) from None


def _sums_of(flat: Float32Array) -> ChannelSums:
    """The sums of finite values [C, N] with C * N <= _MOST. Values of one exponent are added as whole numbers first."""
    channels, count = flat.shape
    fractions, exponents = np.frexp(flat.astype(np.float64))
    mantissas = np.ldexp(fractions, _MANTISSA).astype(np.int64)  # whole, below 2**24 in size
    places = np.clip(exponents.astype(np.int64) + UNIT_EXPONENT - 1, 0, _EXPONENTS - 1)  # a zero adds zero anywhere
    bins = (np.arange(channels)[:, None] * _EXPONENTS + places).ravel()
    squares = (mantissas * mantissas).ravel()
    high, low = squares >> _MANTISSA, squares & ((1 << _MANTISSA) - 1)

    def binned(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        added = np.bincount(bins, values.astype(np.float64), channels * _EXPONENTS)
        return added.astype(np.int64).reshape(channels, _EXPONENTS)

    sums, highs, lows = binned(mantissas.ravel()), binned(high), binned(low)
    return ChannelSums(
        values=count,
        # A value is mantissa * 2**(place - 148 - 24), which is mantissa * 2**(place - 23) units of 2**-149.
        sums=tuple(_total(row, 1) >> (_MANTISSA - 1) for row in sums),
        squares=tuple(
            ((_total(above, 2) << _MANTISSA) + _total(below, 2)) >> 2 * (_MANTISSA - 1)
            for above, below in zip(highs, lows, strict=True)
        ),
    )


def _total(row: npt.NDArray[np.int64], power: int) -> int:
    """The sum over places of a bin's content times 2**(power * place), as a whole number."""
    return sum(int(row[place]) << power * int(place) for place in np.flatnonzero(row))
