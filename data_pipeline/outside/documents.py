"""JSON and YAML from outside: bounded in size and depth, and data only. A YAML alias, tag or resolver is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from data_pipeline.outside.regular import read_regular

MOST_YAML = 2**18
"""Bytes of a YAML file. The longest configuration of this project has some ten thousand."""
MOST_JSON = 2**26
"""Bytes of a JSON file that describes a model or a checkpoint. Its longest part is a line for each file."""
MOST_DEPTH = 64
"""Lists and mappings inside each other."""
MOST_DIGITS = 4_000
"""Of a whole number. Python itself refuses 4301, in words that no reader of a file can use."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON in UTF-8, is nested too deeply, or holds a number that is not finite.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=whole_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """The object of a JSON text. Raises: ValueError as `parse_json`, also for what is no object."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"it is no JSON object but a {type(found).__name__}")
    return found


def read_json(file: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: as `parse_json`, or the file is too long; the message names the file.
        OSError: it cannot be read, or is no regular file.
    """
    return _named(file, "JSON", lambda: parse_json(read_regular(file, MOST_JSON)))


def read_json_object(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The object of a JSON file. Raises: as `read_json`, also for what is no object."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} must be a JSON object, and is a {type(found).__name__}; restore the file")
    return found


class TooDeep(ValueError):
    """A YAML text is longer or nested deeper than any configuration is."""


def check_depth(text: str) -> None:
    """Refuse a YAML text that is too long or nested too deeply to be read; what it holds is not looked at.

    Raises:
        TooDeep: the message names the line.
        yaml.YAMLError: it is no YAML.
    """
    _check_events(text, plain=False)


def check_yaml(text: str) -> None:
    """Refuse a YAML text that is more than values, lists and mappings, or is too large or too deep to be read.

    Aliases are refused because ten lines of them can stand for ten thousand million values.

    Raises:
        ValueError: the message names the line.
        yaml.YAMLError: it is no YAML.
    """
    _check_events(text, plain=True)


def _check_events(text: str, *, plain: bool) -> None:
    if len(text) > MOST_YAML:
        raise TooDeep(f"it has more than {MOST_YAML} characters")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f"line {event.start_mark.line + 1 if event.start_mark else 1}"
        if plain and (isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None):
            raise ValueError(f"{line} holds an anchor or an alias (& or *); write the value in its place")
        tag = getattr(event, "tag", None)
        if plain and tag not in (None, "!"):
            raise ValueError(f"{line} holds the tag {tag}; write the value without a tag")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise TooDeep(f"{line} is nested more than {MOST_DEPTH} deep")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is no YAML, more than `check_yaml` lets pass, or holds a resolver such as `${oc.env:HOME}`, which
            is never replaced.
    """
    try:
        check_yaml(text)
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise ValueError(f"{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    _refuse_resolvers(value, "")
    return value


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """The value of a YAML file.

    Raises:
        ValueError: as `parse_yaml`, or the file is too long or not UTF-8; the message names the file.
        OSError: it cannot be read, or is no regular file.
    """
    return _named(file, "YAML", lambda: parse_yaml(_decoded(read_regular(file, MOST_YAML))))


def read_yaml_mapping(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping of a YAML file. Raises: as `read_yaml`, also for what is no mapping."""
    found = read_yaml(file)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{file} must hold keys with values, and does not; restore the file")
    return found


def _named(file: str | os.PathLike[str], kind: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{file} is not a {kind} file: {error}") from error


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        raise ValueError(
            f"line {line} holds the byte 0x{byte:02x}, which is not UTF-8; save the file as UTF-8"
        ) from error


def _refuse_resolvers(value: Any, key: str) -> None:
    if isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{key or 'a value'} holds ${{...}}, which is not replaced in a file from outside; write the value"
        )
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        _refuse_resolvers(item, f"{key}.{name}".removeprefix("."))
        if isinstance(name, str) and "${" in name:
            raise ValueError(f"a key of {key or 'the file'} holds ${{...}}; write the key itself")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number of JSON")


def whole_number(text: str) -> int:
    """A whole number of JSON. Raises: ValueError for one of so many digits that Python does not read it."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {text[:40]}, which is beyond the numbers of a computer")
    return number
