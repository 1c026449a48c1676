"""From a dataclass, YAML files and `key=value` words to one checked, typed configuration.

Order of precedence: dataclass defaults < `--config` files, left to right < command-line overrides. The comment beside a
dataclass field (or the comment block above it) is its `--help` text, so the meaning is written once.
"""

from __future__ import annotations

import ast
import difflib
import io
import math
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import getsource
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

T = TypeVar("T")


def load_config(cls: type[T], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> T:
    """Build and check one configuration.

    Args:
        cls: a dataclass; nested dataclasses become nested keys. `__post_init__` checks run last.
        files: YAML files, later ones win.
        overrides: words like `optim.lr=1e-4`.
    Returns:
        An instance of `cls`.
    Raises:
        ValueError: an unreadable file, an unknown key (with the nearest known one), a wrong type, or a combination a
            `__post_init__` refuses. The message names the key and where it was set.
    """
    config = OmegaConf.structured(cls)
    for file in files:
        try:
            layer = OmegaConf.load(file)
        except OSError as error:
            raise ValueError(f"config file {file} cannot be read: {error.strerror}") from error
        except Exception as error:
            if type(error).__module__.startswith("yaml"):
                raise ValueError(f"config file {file} is not valid YAML: {error}") from error
            raise
        config = _merge(cls, config, layer, str(file))
    for word in overrides:
        key, equals, _ = word.partition("=")
        if not equals or not key:
            raise ValueError(f"override {word!r} is not of the form key=value")
        config = _merge(cls, config, OmegaConf.from_dotlist([word]), f"override {word!r}")
    missing = sorted(str(key) for key in OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)} must be set: add {missing[0]}=... to the command or to a --config file")
    for key, value in _leaves(config):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{key}={_word(value)} must be finite")
    built = OmegaConf.to_object(config)
    assert isinstance(built, cls)
    return built


def _merge(cls: type, config: Any, layer: Any, origin: str) -> Any:
    try:
        return OmegaConf.merge(config, layer)
    except ConfigKeyError as error:
        key = str(error.full_key)
        known = [name for name, *_ in config_keys(cls)]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
        ]
        hint = f"; did you mean {near[0]!r}?" if near else "; --help lists the keys"
        raise ValueError(f"{origin}: unknown key {key!r}{hint}") from error
    except OmegaConfBaseException as error:
        what = str(error.msg or error).splitlines()[0]
        raise ValueError(f"{origin}: {error.full_key or 'value'}: {what}") from error


def to_yaml(config: Any) -> str:
    """The whole resolved configuration as YAML; feeding it back through `load_config` repeats the run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def default_values(cls: type) -> dict[str, Any]:
    """Dotted key -> what it is unless it is set; "???" where it must be set."""
    return dict(_leaves(OmegaConf.structured(cls)))


def changed_keys(config: Any) -> list[str]:
    """The settings that differ from their defaults, as `key=value` words in the order of the fields."""
    defaults = default_values(type(config))
    return [f"{key}={_word(value)}" for key, value in _leaves(OmegaConf.structured(config)) if value != defaults[key]]


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    plain: Any = OmegaConf.to_container(tree, enum_to_str=True) if OmegaConf.is_config(tree) else tree
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{below}", leaf) for below, leaf in _leaves(value))
        else:
            yield str(key), list(value) if isinstance(value, tuple) else value


def _word(value: Any) -> str:
    if isinstance(value, bool | None):
        return "null" if value is None else str(value).lower()
    return f"[{','.join(map(_word, value))}]" if isinstance(value, list) else str(value)


def config_keys(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every leaf key of a configuration class as (key, type, default, meaning)."""
    hints = get_type_hints(cls)
    notes = _field_notes(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if is_dataclass(kind):
            yield from config_keys(kind, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            name = getattr(kind, "__name__", str(kind)) if not hasattr(kind, "__args__") else str(kind)
            yield f"{prefix}{item.name}", name.replace("typing.", ""), _default_text(item), notes.get(item.name, "")


def _default_text(item: Field[Any]) -> str:
    if item.default is not MISSING:
        value = item.default
    elif item.default_factory is not MISSING:
        value = item.default_factory()
    else:
        return "required"
    if isinstance(value, str):
        return "required" if value == "???" else (value or '""')
    return str(getattr(value, "value", value))


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
