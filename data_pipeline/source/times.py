"""Times of a manifest in seconds: numbers, clock times, and frames over a frame rate."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_CLOCK = re.compile(r"\s*(?:\d+:)?\d+:\d+(?:[.,]\d*)?\s*")
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def seconds_of(value: Any) -> float | None:
    """One time in seconds.

    Args:
        value: a number; a text such as `12.5`, `1:02.5`, `0:01:02,500` (SubRip's comma), `250/25` or `100/30000/1001`
            (frames over frames a second); a duration; None or "" for no time.
    Returns:
        None for no time. NaN for what is no time.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("nan")
    return float("nan")


def _of_text(text: str) -> float | None:
    if not text.strip():
        return None
    if "_" in text:  # Python would read `12_5` as 125
        return float("nan")
    try:
        if ":" in text:
            if not _CLOCK.fullmatch(text):
                return float("nan")
            seconds = 0.0
            for part in text.replace(",", ".").split(":"):
                seconds = seconds * 60 + float(part)
            return seconds
        frames, slash, rate = text.partition("/")
        if not slash:
            return float(text)
        numerator, slash, denominator = rate.partition("/")
        return float(frames) / (float(numerator) / float(denominator) if slash else float(numerator))
    except (ValueError, ZeroDivisionError):
        return float("nan")


def seconds_column(values: pa.Array) -> pa.Array | None:
    """A column of numbers, decimals, durations or times of day in seconds, as doubles; None for another type."""
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind):
        return pc.cast(values, pa.float64(), safe=False)
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        whole = pc.cast(values, pa.int32()) if pa.types.is_time32(kind) else values
        number = pc.cast(pc.cast(whole, pa.int64()), pa.float64(), safe=False)
        return pc.divide(number, pa.scalar(np.float64(_UNITS[kind.unit])))
    return None
