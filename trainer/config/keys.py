"""What `--help` says of a configuration class: its keys and sections, read from the source of the dataclasses."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from inspect import getsource
from textwrap import dedent
from typing import Any, get_type_hints

from trainer.config.values import type_name


def config_keys(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every leaf key of a configuration class as (key, type, default, meaning).

    The meaning is the comment of the field, or what `cls.meanings` says in its place (`RunConfig.meanings`).
    """
    instead: Mapping[str, str] = getattr(cls, "meanings", {})
    for key, kind, default, comment in _commented(cls, prefix):
        yield key, kind, default, instead.get(key, comment)


def _commented(cls: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    hints = get_type_hints(cls)
    notes = _field_notes(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if is_dataclass(kind):
            yield from _commented(kind, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}", type_name(kind), _default_text(item), notes.get(item.name, "")


def config_sections(cls: type, prefix: str = "") -> dict[str, str]:
    """Dotted section -> the first line of its dataclass's docstring; "" is the class itself."""
    found = {prefix: (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""}
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind):
            found |= config_sections(kind, f"{prefix}.{name}" if prefix else name)  # type: ignore[arg-type]
    return found


def _default_text(item: Field[Any]) -> str:
    if item.default is not MISSING:
        value = item.default
    elif item.default_factory is not MISSING:
        value = item.default_factory()
    else:
        return "required"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, bool | None):
        return "null" if value is None else str(value).lower()
    return "required" if value == "???" else str(value)


def _field_notes(cls: type) -> dict[str, str]:
    """Field name -> the comment lines directly above it and the comment behind it."""
    notes: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        source = dedent(getsource(base))
        comments = {
            token.start[0]: (token.string.lstrip("# ").strip(), token.line.lstrip().startswith("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for item in body.body:
            if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
                continue
            first = item.lineno
            while comments.get(first - 1, ("", False))[1]:
                first -= 1
            lines = range(first, (item.end_lineno or item.lineno) + 1)
            notes[item.target.id] = " ".join(comments[line][0] for line in lines if line in comments)
    return notes
