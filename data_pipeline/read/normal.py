"""Standard normal numbers from random words: the same on every machine, whatever its processor and its libraries.

Box and Muller (1958): a pair of independent uniform numbers a in (0, 1) and t in [0, 1) gives the independent normal
numbers sqrt(-2 ln a) cos(2 pi t) and sqrt(-2 ln a) sin(2 pi t). Logarithm, sine and cosine are the series below, of
additions, multiplications and divisions, each of which IEEE 754 rounds in one way only. Those of a library differ in
their last bits between processors. The errors of the series are below 1e-11.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_HALF = math.sqrt(0.5)
_LOG_2 = math.log(2.0)
_LOG = [2.0 / (2 * k + 1) for k in range(7)]  # ln(m) = s (2 + 2/3 s^2 + 2/5 s^4 ...), s = (m - 1) / (m + 1)
_SIN = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(6)]
_COS = [(-1.0) ** k / math.factorial(2 * k) for k in range(7)]


def normal_numbers(words: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.float32]:
    """Independent standard normal numbers.

    Args:
        words: uniform 64-bit words, half as many as numbers, rounded up. The upper half of a word gives a, the lower
            half gives t.
        count: how many numbers.
    Returns:
        fp32 [count]: the cosines of all words, then the sines. None is larger than 6.8.
    """
    half = len(words)
    assert half == (count + 1) // 2
    uniform = words.view(np.uint32).reshape(half, 2).astype(np.float64)  # [lower, upper] on a little-endian machine
    uniform += 0.5
    uniform *= 2.0**-32
    radius = _logarithm(uniform[:, 1])
    radius *= -2.0
    np.sqrt(radius, out=radius)
    cosine, sine = _circle(uniform[:, 0])
    numbers = np.empty(2 * half, dtype=np.float32)
    np.multiply(radius, cosine, out=numbers[:half], casting="same_kind")
    np.multiply(radius, sine, out=numbers[half:], casting="same_kind")
    return numbers[:count]


def _logarithm(a: Float64Array) -> Float64Array:
    """ln(a) for a in (0, 1), by ln(m 2^e) = ln(m) + e ln(2) with m in [sqrt(1/2), sqrt(2))."""
    mantissa, exponent = np.frexp(a)
    low = mantissa < _HALF
    mantissa *= low + 1.0
    s = (mantissa - 1.0) / (mantissa + 1.0)
    result = _polynomial(_LOG, s * s)
    result *= s
    result += (exponent - low) * _LOG_2
    return result


def _circle(t: Float64Array) -> tuple[Float64Array, Float64Array]:
    """cos(2 pi t) and sin(2 pi t) for t in [0, 1]: series within an eighth of a turn, then turned by quarters."""
    quarters = np.rint(t * 4.0)
    x = (t - quarters * 0.25) * (2.0 * math.pi)
    square = x * x
    cosine = _polynomial(_COS, square)
    sine = _polynomial(_SIN, square)
    sine *= x
    turned = quarters.astype(np.int64)
    odd = (turned & 1).astype(bool)
    sign = 1.0 - (turned & 2)
    return np.where(odd, -sine, cosine) * sign, np.where(odd, cosine, sine) * sign


def _polynomial(coefficients: list[float], x: Float64Array) -> Float64Array:
    """Horner's scheme. NumPy rounds each product and each sum by itself."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result
