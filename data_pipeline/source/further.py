"""The columns that the builder does not use. They are kept as the user wrote them, in one JSON object for each row."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.source.raw_rows import Column, OutOfRange


def json_column(name: str, values: Sequence[Any], problems: dict[int, str]) -> Column:
    """Values as their JSON texts. A value that has none goes to `problems`, and NaN counts as no value.

    Args:
        name: of the column.
        values: what JSON or Arrow made of a column.
        problems: position -> why the row is of no use; gets more entries.
    """
    texts: list[str | None] = []
    for position, value in enumerate(values):
        try:
            texts.append(_json_text(value))
        except (ValueError, TypeError) as error:
            texts.append(None)
            problems.setdefault(
                position, f"column {name!r} cannot be kept: {error}; mend the value, or pass columns.drop=[{name}]"
            )
    return Column(pa.array(texts, pa.string()), json=True)


def objects(columns: Mapping[str, Column], rows: int, problems: dict[int, str]) -> pa.Array:
    """For each row, the JSON object of its values in the order of the names, without missing ones; "" for none."""
    if not columns:
        return pa.array([""] * rows, pa.string())
    texts = {}
    for name in sorted(columns):
        column = columns[name]
        whole = column.json and not pc.any(pc.match_substring_regex(column.values, _NO_JSON)).as_py()
        kept = column if whole else json_column(name, column.to_pylist(), problems)
        key = f"{json.dumps(name, ensure_ascii=False)}: "
        texts[name] = [None if text is None else key + text for text in kept.values.to_pylist()]
    joined = (", ".join([text for text in row if text is not None]) for row in zip(*texts.values(), strict=True))
    return pa.array([f"{{{text}}}" if text else "" for text in joined], pa.string())


def _json_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return _ENCODER.encode(value)


def _plain(value: Any) -> str:
    """The text of what JSON has no form for."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, OutOfRange):
        raise TypeError(f"it holds {value!r}")
    raise TypeError(f"a {type(value).__name__} has no JSON form")


_NO_JSON = "NaN|Infinity"
"""Numbers that Python writes into JSON, although JSON has no such numbers."""
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
