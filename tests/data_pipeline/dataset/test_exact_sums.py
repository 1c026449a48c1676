"""Exact sums against fractions, NumPy and math.fsum, on numbers that ordinary sums get wrong."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from data_pipeline.dataset.exact_sums import ChannelSums
from data_pipeline.dataset.fields import FieldError, canonical_json, read_object

TINY, HUGE = np.float32(2.0**-149), np.finfo(np.float32).max


def wild(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of all sizes and both signs, with zeros, the smallest and the largest among them."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, shape, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32).copy()
    values[~np.isfinite(values)] = 0.0
    values.flat[:6] = [TINY, -TINY, HUGE, HUGE, -0.0, 1.0]
    return values


@pytest.mark.parametrize("seed", range(5))
def test_sums_are_those_of_fractions(seed: int) -> None:
    values = wild(seed, (3, 7, 11))
    sums = ChannelSums.of(values)
    assert sums.values == 77
    for channel in range(3):
        exact = [Fraction(float(value)) for value in values[channel].ravel()]
        assert Fraction(sums.sums[channel], 2**149) == sum(exact)
        assert Fraction(sums.squares[channel], 2**298) == sum(value * value for value in exact)


def test_no_order_and_no_division_among_workers_changes_a_bit() -> None:
    values = wild(9, (2, 600))
    whole = ChannelSums.of(values)
    for seed in range(4):
        columns = list(range(600))
        random.Random(seed).shuffle(columns)
        total = ChannelSums.nothing(2)
        for begin in range(0, 600, 97 + seed):
            total += ChannelSums.of(values[:, columns[begin : begin + 97 + seed]])
        assert total == whole


def test_means_and_deviations_are_the_nearest_float64() -> None:
    values = np.random.default_rng(1).normal(3.0, 0.5, (4, 5000)).astype(np.float32)
    sums = ChannelSums.of(values)
    exact = values.astype(np.float64)
    assert sums.means() == [math.fsum(row) / 5000 for row in exact], "fsum rounds once, and the division once"
    np.testing.assert_allclose(sums.deviations(), exact.std(axis=1), rtol=1e-12)


def test_the_deviation_of_large_equal_values_is_zero_and_not_noise() -> None:
    assert ChannelSums.of(np.full((1, 1000), 1e30, np.float32)).deviations() == [0.0]
    assert ChannelSums.nothing(2).means() == []
    assert ChannelSums.nothing(2).deviations() == []


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_has_no_sum(value: float) -> None:
    with pytest.raises(ValueError, match="have no sum"):
        ChannelSums.of(np.array([[1.0, value]], np.float32))


def test_stored_sums_are_these_bytes() -> None:
    sums = ChannelSums.of(np.array([[-TINY, 3 * TINY], [1.0, -0.5]], np.float32))
    stored = canonical_json(sums.to_json())
    assert stored == (b'{"squares":["a","5' + b"0" * 74 + b'"],"sums":["2","1' + b"0" * 37 + b'"],"values":2}'), (
        "2**148 units are 0.5, and 5 * 2**296 units of squares are 1.25"
    )
    assert read_object(stored, ChannelSums.from_json) == sums
    with pytest.raises(FieldError, match="field sums must be a list of whole numbers in hexadecimal"):
        read_object(b'{"squares":["a"],"sums":["g"],"values":2}', ChannelSums.from_json)
    with pytest.raises(FieldError, match="field squares must be a list of 1 sums, not 0"):
        read_object(b'{"squares":[],"sums":["1"],"values":2}', ChannelSums.from_json)
