"""Batches of rows before they are checked: first with the columns of their file, then with the columns that we know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

NAMED_COLUMNS = ("video", "caption", "id", "start", "end", "label", "split", "times")
"""The columns that the builder uses. `times` holds [start, end] pairs and stands in place of `start` and `end`."""
_SHOWN = 80  # characters of a value that a message shows


class OutOfRange:
    """Stands for a date or a duration that Arrow can hold and Python cannot."""

    def __repr__(self) -> str:
        return "a time that is out of range"


def _as_python(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return OutOfRange()


@dataclass(frozen=True)
class Column:
    """The values of one column.

    Args:
        values: [rows]; where `json` is true, the JSON text of each value, so that 1 stays 1 beside 1.5.
        json: whether the values are JSON texts.
    """

    values: pa.Array
    json: bool = False

    def to_pylist(self) -> list[Any]:
        """The values as Python objects."""
        try:
            values = self.values.to_pylist()
        except (OverflowError, ValueError):
            values = [_as_python(value) for value in self.values]
        return [None if value is None else json.loads(value) for value in values] if self.json else values

    def at(self, position: int) -> Any:
        """One value as a Python object."""
        value = _as_python(self.values[position])
        return json.loads(value) if self.json and value is not None else value

    def take(self, positions: np.ndarray) -> Column:
        """The values at these positions."""
        return replace(self, values=self.values.take(pa.array(positions)))


@dataclass(frozen=True)
class RawRows:
    """Consecutive rows of one file, with the columns that the file has."""

    columns: dict[str, Column]
    numbers: np.ndarray  # int64 [rows]: number of each row in its file, from 1
    problems: dict[int, str] = field(default_factory=dict)  # position in this batch -> why the row is of no use
    unread: tuple[str, ...] = ()  # columns that the file has and that are left out on demand


@dataclass(frozen=True)
class MappedRows:
    """The same rows with the columns of `NAMED_COLUMNS`, and beside them the columns that are kept for the user."""

    named: dict[str, Column]
    further: dict[str, Column]
    numbers: np.ndarray  # int64 [rows]
    problems: dict[int, str]
    items: np.ndarray | None = None  # int64 [rows]: place in the row's lists, from 1; 0 or None: the row has no lists

    def place(self, position: int) -> str:
        """How messages name a row of these."""
        item = 0 if self.items is None else int(self.items[position])
        return f"row {self.numbers[position]}" + (f", item {item}" if item else "")


def typed_column(values: Sequence[Any]) -> Column:
    """Python values as a column; values without a common type as JSON texts.

    Arrow would make 1 beside 2.5 a 1.0, and give all objects the names of all, so these have no common type.
    """
    if len(_kinds(values)) <= 1:
        with suppress(pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            return Column(pa.array(values))
    texts = [None if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True) for value in values]
    return Column(pa.array(texts, pa.string()), json=True)


def _kinds(values: Sequence[Any]) -> set[type | int]:
    """The types of the values and of the items of their lists, without None. Each object is a kind of its own."""
    kinds: set[type | int] = set()
    for value in values:
        if isinstance(value, list | tuple):
            kinds |= _kinds(value)
        elif isinstance(value, dict):
            kinds |= {dict, id(value)}
        elif value is not None:
            kinds.add(type(value))
    return kinds


def shown(value: Any) -> str:
    """A value as a message shows it. Of a long value only the beginning is shown."""
    text = repr(value if not isinstance(value, str | bytes) else value[:_SHOWN])
    if len(text) > _SHOWN + 2 or (isinstance(value, str | bytes) and len(value) > _SHOWN):
        text = f"{text[:_SHOWN]}..."
    return text
