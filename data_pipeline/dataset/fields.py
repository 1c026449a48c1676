"""Typed fields of a JSON object. A missing, unknown or wrongly typed field is an error that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

Number = int | float
Measured = dict[str, float | str]
"""Name of a measurement -> its value, as a gate or a caption rule recorded it."""


class FieldError(ValueError):
    """A field of a record is missing, unknown or of another type. The message names the field."""


class WrongFormat(FieldError):
    """A file has a format number that this version does not read."""


class Fields:
    """The fields of one JSON object, each taken once with its type.

    Args:
        value: the parsed JSON value.
        place: path of the object inside its file, such as `rows[3]`; "" for the whole file.
    Raises:
        FieldError: the value is no JSON object.
    """

    def __init__(self, value: Any, place: str = "") -> None:
        if type(value) is not dict:
            raise FieldError(f"{place or 'the whole'} must be a JSON object, not {shown(value)}")
        self._left = dict(value)
        self._place = place

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def require_format(self, number: int) -> None:
        """Take the field `format`. Raises: WrongFormat unless it is `number`."""
        value = self.integer("format")
        if value != number:
            raise WrongFormat(
                f"format {value}, and this version reads {number}; rebuild the shards, or install the version that "
                "made them"
            )

    def text(self, name: str) -> str:
        """A string."""
        return str(self._take(name, str, "a text"))

    def integer(self, name: str) -> int:
        """A whole number. JSON's true and false are none."""
        return int(self._take(name, int, "a whole number"))

    def number(self, name: str) -> Number:
        """A number, unchanged: 0 and 0.0 stay different, because their JSON texts differ."""
        value = self._any(name)
        if type(value) is not int and type(value) is not float:
            raise self.wrong(name, "a number", value)
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number or null."""
        value = self._any(name)
        if value is not None and type(value) is not int:
            raise self.wrong(name, "a whole number or null", value)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object with values of any type."""
        return dict(self._take(name, dict, "a JSON object"))

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        values = list(self._take(name, list, "a list"))
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
            if type(value) not in (int, float, str):
                raise self.wrong(f"{name}.{key}", "a number or a text", value)
        return values

    def record(self, name: str, read: Callable[[Fields], T]) -> T:
        """A nested record."""
        return _whole(Fields(self._any(name), self._path(name)), read)

    def records(self, name: str, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of nested records."""
        values = self._take(name, list, "a list")
        return tuple(_whole(Fields(value, f"{self._path(name)}[{n}]"), read) for n, value in enumerate(values))

    def ignore(self, name: str) -> None:
        """Leave out a field that may have any value. Raises: FieldError when it is missing."""
        self._any(name)

    def end(self) -> None:
        """All fields are taken. Raises: FieldError when one is left."""
        if self._left:
            raise FieldError(f"field {self._path(min(self._left))} is unknown to this version")

    def _take(self, name: str, kind: type, expected: str) -> Any:
        value = self._any(name)
        if type(value) is not kind:
            raise self.wrong(name, expected, value)
        return value

    def _any(self, name: str) -> Any:
        try:
            return self._left.pop(name)
        except KeyError:
            raise FieldError(f"field {self._path(name)} is missing") from None

    def wrong(self, name: str, expected: str, value: Any) -> FieldError:
        """The error for a field with this value where `expected` is."""
        return FieldError(f"field {self._path(name)} must be {expected}, not {shown(value)}")

    def _path(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name


def read_object(data: bytes, read: Callable[[Fields], T]) -> T:
    """A record from the bytes of its JSON file. Raises: ValueError for what is no JSON; FieldError."""
    return _whole(Fields(json.loads(data)), read)


def shown(value: Any) -> str:
    """A JSON value in a message, in at most some 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def canonical_json(value: Any) -> bytes:
    """The JSON text of a value. The same value gives the same bytes on every machine."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _whole(fields: Fields, read: Callable[[Fields], T]) -> T:
    record = read(fields)
    fields.end()
    return record
