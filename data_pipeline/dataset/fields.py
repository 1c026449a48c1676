"""Typed fields of a JSON object. A missing, unknown or wrongly typed field is an error that names the field."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from data_pipeline.outside.documents import parse_json

T = TypeVar("T")

Number = int | float
Measured = dict[str, float | str]
"""Name of a measurement -> its value, as a gate or a caption rule recorded it."""

MISSING = object()
"""Stands for the value of a missing field."""


class FieldError(ValueError):
    """A field of a record is missing, unknown or of another type. The message names the field."""


class WrongFormat(FieldError):
    """A file has a format number that this version does not read."""


class Fields:
    """The fields of one JSON object, each read once and with its type.

    Args:
        value: the parsed JSON value.
        place: names and positions that lead to the object inside its file; () for the whole file.
    Raises:
        FieldError: the value is no JSON object.
    """

    def __init__(self, value: Any, place: tuple[str | int, ...] = ()) -> None:
        if type(value) is not dict:
            raise _wrong(_path(place) or "(the whole file)", "a JSON object", value)
        self._left = value.copy()
        self._place = place

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def require_format(self, number: int) -> None:
        """Read the field `format`. Raises: WrongFormat unless it is `number`."""
        value = self.integer("format")
        if value != number:
            raise WrongFormat(
                f"format {value}, and this version reads {number}; rebuild the shards, or install the version that "
                "made them"
            )

    def text(self, name: str) -> str:
        """A string."""
        value = self._left.pop(name, MISSING)
        if type(value) is str:
            return value
        raise self.wrong(name, "a text", value)

    def integer(self, name: str) -> int:
        """A whole number. JSON's true and false are none."""
        value = self._left.pop(name, MISSING)
        if type(value) is int:
            return value
        raise self.wrong(name, "a whole number", value)

    def number(self, name: str) -> Number:
        """A number, unchanged: 0 and 0.0 stay different, because their JSON texts differ."""
        value = self._left.pop(name, MISSING)
        if _is_number(value):
            return value
        raise self.wrong(name, "a number", value)

    def optional_integer(self, name: str) -> int | None:
        """A whole number or null."""
        value = self._left.pop(name, MISSING)
        if value is None or type(value) is int:
            return value
        raise self.wrong(name, "a whole number or null", value)

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object with values of any type."""
        value = self._left.pop(name, MISSING)
        if type(value) is dict:
            return value
        raise self.wrong(name, "a JSON object", value)

    def values(self, name: str) -> list[Any]:
        """A JSON list with values of any type."""
        value = self._left.pop(name, MISSING)
        if type(value) is list:
            return value
        raise self.wrong(name, "a list", value)

    def numbers(self, name: str) -> list[Number]:
        """A list of numbers."""
        values = self.values(name)
        for number, value in enumerate(values):
            if not _is_number(value):
                raise self.wrong(f"{name}[{number}]", "a number", value)
        return values

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers."""
        values = self.values(name)
        for number, value in enumerate(values):
            if type(value) is not int:
                raise self.wrong(f"{name}[{number}]", "a whole number", value)
        return values

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        values = self.values(name)
        for number, value in enumerate(values):
            if type(value) is not str:
                raise self.wrong(f"{name}[{number}]", "a text", value)
        return values

    def counts(self, name: str) -> dict[str, int]:
        """A JSON object of whole numbers."""
        values = self.mapping(name)
        for key, value in values.items():
            if type(value) is not int:
                raise self.wrong(f"{name}.{key}", "a whole number", value)
        return values

    def measured(self, name: str) -> Measured:
        """A JSON object of numbers and texts."""
        values = self.mapping(name)
        for key, value in values.items():
            if type(value) is not str and not _is_number(value):
                raise self.wrong(f"{name}.{key}", "a number or a text", value)
        return values

    def record(self, name: str, read: Callable[[Fields], T]) -> T:
        """A nested record."""
        return _whole(self._left.pop(name, MISSING), (*self._place, name), read)

    def records(self, name: str, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of nested records."""
        return tuple(
            [_whole(value, (*self._place, name, number), read) for number, value in enumerate(self.values(name))]
        )

    def record_by_name(self, name: str, read: Callable[[Fields], T]) -> dict[str, T]:
        """A JSON object whose values are nested records."""
        values = self.mapping(name)
        return {key: _whole(value, (*self._place, name, key), read) for key, value in values.items()}

    def ignore(self, name: str) -> None:
        """Leave out a field that may have any value. Raises: FieldError when it is missing."""
        if self._left.pop(name, MISSING) is MISSING:
            raise self.wrong(name, "given", MISSING)

    def end(self) -> None:
        """All fields are read. Raises: FieldError when one is left."""
        if self._left:
            raise FieldError(f"field {_path((*self._place, min(self._left)))} is unknown to this version")

    def wrong(self, name: str, expected: str, value: Any) -> FieldError:
        """The error for a field that is missing, or has this value where `expected` is."""
        return _wrong(_path((*self._place, name)), expected, value)


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold, as a whole number of 400 digits is not."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _wrong(path: str, expected: str, value: Any) -> FieldError:
    if value is MISSING:
        return FieldError(f"field {path} is missing")
    return FieldError(f"field {path} must be {expected}, not {_shown(value)}")


def _path(place: tuple[str | int, ...]) -> str:
    """("rows", 3, "clips") as `rows[3].clips`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def read_object(data: bytes, read: Callable[[Fields], T]) -> T:
    """A record from the bytes of its JSON file. Raises: ValueError for what is no JSON; FieldError."""
    return _whole(parse_json(data), (), read)


def _whole(value: Any, place: tuple[str | int, ...], read: Callable[[Fields], T]) -> T:
    fields = Fields(value, place)
    record = read(fields)
    fields.end()
    return record


def _shown(value: Any) -> str:
    """A JSON value in a message, in at most some 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def canonical_json(value: Any) -> bytes:
    """The JSON text of a value. The same value gives the same bytes on every machine."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
