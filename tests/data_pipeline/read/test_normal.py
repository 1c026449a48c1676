"""Normal numbers of Philox words against NumPy's logarithm, cosine and sine in fp64, and against the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_pipeline.read import normal
from data_pipeline.read.normal import normal_numbers
from data_pipeline.read.order import PURPOSE_LATENT, draw

pytestmark = pytest.mark.numeric


def words(count: int, seed: int = 5) -> np.ndarray:
    return draw(seed, PURPOSE_LATENT, (1, 2, 3), count)


def test_the_numbers_are_those_of_box_and_muller() -> None:
    """The formula with the library's functions; fp32 rounds both to within 6e-8."""
    given = words(50_000)
    a = ((given >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32
    t = ((given & np.uint64(2**32 - 1)).astype(np.float64) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(a)), 2 * np.pi * t
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(normal_numbers(given, 100_000), expected, rtol=1e-7, atol=1e-7)


def test_the_series_are_the_functions() -> None:
    """In fp64, over their whole range and at its ends."""
    a = np.concatenate([np.linspace(2.0**-33, 1 - 2.0**-33, 100_001), 2.0 ** -np.arange(1.0, 34), [0.5**0.5]])
    np.testing.assert_allclose(normal._logarithm(a), np.log(a), rtol=1e-9, atol=0)
    t = np.concatenate([np.linspace(0, 1, 80_001), np.arange(9) / 8, np.arange(8) / 8 + 2.0**-33])
    cosine, sine = normal._circle(t)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * t), rtol=0, atol=1e-11)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * t), rtol=0, atol=1e-11)


def scalar_pair(word: int) -> tuple[float, float]:
    """The pair of a word by Python's own floats, which know neither vectors nor fused products."""
    mantissa, exponent = math.frexp(((word >> 32) + 0.5) * 2.0**-32)
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = mantissa * 2.0, exponent - 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    radius = math.sqrt(-2.0 * (horner(normal._LOG, s * s) * s + exponent * math.log(2.0)))
    t = ((word & (2**32 - 1)) + 0.5) * 2.0**-32
    quarters = round(t * 4.0)  # ties to even, as NumPy's rint
    x = (t - quarters * 0.25) * (2.0 * math.pi)
    c, s = horner(normal._COS, x * x), horner(normal._SIN, x * x) * x
    cosine, sine = [(c, s), (-s, c), (-c, -s), (s, -c)][quarters % 4]
    return radius * cosine, radius * sine


def horner(coefficients: list[float], x: float) -> float:
    result = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def test_every_bit_is_that_of_plain_arithmetic() -> None:
    """So no instruction set of a processor and no release of NumPy changes a number."""
    given = np.concatenate([words(3001), np.array([0, 2**64 - 1, 2**31, 2**63, 5 * 2**29], dtype=np.uint64)])
    pairs = np.array([scalar_pair(int(word)) for word in given]).astype(np.float32)
    assert np.array_equal(normal_numbers(given, 2 * len(given)), np.concatenate([pairs[:, 0], pairs[:, 1]]))


def test_the_ends_of_the_words_are_finite() -> None:
    ends = np.array([0, 2**64 - 1, 2**32 - 1, 2**64 - 2**32], dtype=np.uint64)
    numbers = normal_numbers(ends, 8)
    assert np.isfinite(numbers).all()
    assert np.abs(numbers).max() == pytest.approx(np.sqrt(2 * 33 * np.log(2)), rel=1e-6)


def test_an_odd_count_leaves_the_last_one_out() -> None:
    given = words(8)
    assert np.array_equal(normal_numbers(given, 15), normal_numbers(given, 16)[:15])


def test_they_are_normal_and_independent() -> None:
    """Kolmogorov-Smirnov and the correlation of the two of a pair, each passed by chance in all but 1 of 1000 cases."""
    numbers = normal_numbers(words(100_000), 200_000)
    from scipy import stats  # a second to import

    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    cosines, sines = numbers[:100_000].astype(float), numbers[100_000:].astype(float)
    for first, second in ((cosines, sines), (cosines**2, sines**2), (numbers[:-1], numbers[1:])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 3.3 / np.sqrt(len(first))
