"""From a dataclass, YAML files and `key=value` words to one checked, typed configuration.

Order of precedence: dataclass defaults < `--config` files, left to right < words, left to right. The comment beside a
dataclass field (or the comment block above it) is its `--help` text, so the meaning is written once.

The text after `=` of a key of type str is taken as it stands. All other texts, and the files, are YAML.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from data_pipeline.outside.documents import TooDeep, check_depth
from data_pipeline.store.text import read_text
from trainer.config.typos import hint
from trainer.config.values import NOTHING, check_plain, read_value, text_of

T = TypeVar("T")
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
REQUIRED = "???"
"""The default of a key that has none. Where a user writes it, it is text like any other."""


@dataclass
class _Layer:
    """One source of settings, a file or a word, on its way into `values`.

    Args:
        types: dotted key -> type of its field, for all keys.
        values: dotted key -> value, of the keys that are set; a later layer replaces what an earlier one has set.
        origin: how messages begin; a file's name.
    """

    types: dict[str, Any]
    values: dict[str, Any]
    origin: str = ""

    def read(self, node: yaml.Node, key: str) -> None:
        """Take the value of a key, or all values of a section."""
        if key in self.types:
            try:
                self.values[key] = read_value(self.types[key], node)
            except ValueError as error:
                raise self.refusal(node, f"{key}={text_of(node)} {error}") from None
        elif not key or self._is_section(key):
            self._read_section(node, key)
        else:
            raise self.refusal(node, f"unknown key {key!r}; {self._remedy(key)}")

    def refusal(self, node: yaml.Node | None, message: str) -> ValueError:
        """What is wrong, with the file and the line where it stands."""
        if not self.origin:
            return ValueError(message)
        line = f" line {node.start_mark.line + 1}" if node is not None else ""
        return ValueError(f"config file {self.origin}{line}: {message}")

    def _read_section(self, node: yaml.Node, key: str) -> None:
        if isinstance(node, yaml.ScalarNode) and node.value in NOTHING and self.origin:
            return  # a file, or a section of it, whose lines are all comments sets nothing
        if not isinstance(node, yaml.MappingNode):
            what = f"{key}={text_of(node)}: {key} is a section of keys" if key else "its top must be keys with values"
            raise self.refusal(node, f"{what}, like {self._example(key)}")
        seen: set[str] = set()
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise self.refusal(name, f"{text_of(name)} is not the name of a key")
            full = f"{key}.{name.value}" if key else name.value
            if full in seen:
                raise self.refusal(name, f"{full} is set twice; remove one of the two")
            if "." in name.value:
                raise self.refusal(name, f"unknown key {full!r}; {self._remedy(full, dotted=True)}")
            seen.add(full)
            self.read(value, full)

    def _remedy(self, key: str, *, dotted: bool = False) -> str:
        if dotted and (key in self.types or self._is_section(key)):
            *sections, name = key.split(".")
            return f"in a file write {': {'.join(sections)}: {{{name}: ...{'}' * len(sections)}"
        section = key.rpartition(".")[0]
        if section in self.types:
            return f"{section} is one value, not a section"
        return hint(key, list(self.types))

    def _is_section(self, key: str) -> bool:
        return any(other.startswith(f"{key}.") for other in self.types)

    def _example(self, section: str) -> str:
        first = next(key for key in self.types if key.startswith(f"{section}." if section else ""))
        return f"{first}=..." if not self.origin else f"{first.rpartition('.')[2]}: ..."


def load_config(
    cls: type[T],
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Build and check one configuration.

    Args:
        cls: a dataclass; nested dataclasses become nested keys. `__post_init__` checks run last.
        files: YAML files in UTF-8, later ones win.
        overrides: words like `optim.clip=0.5`, later ones win.
        defaults: dotted key -> value, in place of the defaults of the dataclasses.
    Returns:
        An instance of `cls`.
    Raises:
        ValueError: an unreadable file, an unknown key (with the nearest known one), a wrong type, or a combination a
            `__post_init__` refuses. The message names the key, and the file and line where it was set.
    """
    types, weakest = dict(_types(cls)), default_values(cls, plain=False) | dict(defaults or {})
    assert types.keys() == weakest.keys(), "a default of a key that there is not"
    given: dict[str, Any] = {}
    for file in files:
        layer = _Layer(types, given, str(file))
        node = _compose_file(file, layer)
        if node is not None:
            check_plain(node, layer.refusal)
            layer.read(node, "")
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word!r} is not of the form key=value")
        plain = types.get(key) is str
        node = yaml.ScalarNode("tag:yaml.org,2002:str", text) if plain else _compose_word(key, text)
        _Layer(types, given).read(node, key)
    missing = sorted(key for key, value in weakest.items() if value == REQUIRED and key not in given)
    if missing:
        raise ValueError(f"{', '.join(missing)} must be set: add {missing[0]}=... to the command or to a --config file")
    for key, value in given.items():
        _check_finite(key, value)
    built = _build(cls, weakest | given, "")
    assert isinstance(built, cls)
    return built


def _check_finite(key: str, value: Any) -> None:
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{key}={word_of(value)} must be finite")


def _compose_file(file: str | Path, layer: _Layer) -> yaml.Node | None:
    try:
        text = read_text(Path(file), f"config file {file}")
        check_depth(text)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except TooDeep as error:
        raise ValueError(f"config file {file}: {error}") from error
    except OSError as error:
        raise ValueError(f"config file {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config file {file} is not valid YAML: {_one_line(error)}") from error


def _compose_word(key: str, text: str) -> yaml.Node:
    try:
        check_depth(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except TooDeep as error:
        raise ValueError(f"{key}={text[:40]}...: {error}") from error
    except UnicodeEncodeError as error:  # of bytes on the command line that are no UTF-8
        raise ValueError(f"{key}={text!a} is not valid YAML: it is not UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{key}={text} is not valid YAML: {_one_line(error)}") from error
    if node is None:
        return yaml.ScalarNode("tag:yaml.org,2002:null", "")
    check_plain(node, lambda _, message: ValueError(f"{key}={text}: {message}"))
    return node


def _one_line(error: yaml.YAMLError) -> str:
    """What PyYAML says over several lines, with the line and column of the problem."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        place = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
        return f"{place}: {error.problem or error.context}"
    return " ".join(str(error).split())


def _types(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> type of every setting."""
    hints = get_type_hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if is_dataclass(kind):
            yield from _types(kind, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}", kind


def _build(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(cls)
    arguments = {}
    for item in fields(cls):
        key = f"{prefix}{item.name}"
        arguments[item.name] = (
            _build(hints[item.name], values, f"{key}.") if is_dataclass(hints[item.name]) else values[key]
        )
    return cls(**arguments)


def to_yaml(config: Any) -> str:
    """The whole resolved configuration as YAML; feeding it back through `load_config` repeats the run."""
    return str(yaml.dump(_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _tree(config: Any) -> dict[str, Any]:
    found = {item.name: getattr(config, item.name) for item in fields(config)}
    return {name: _tree(value) if is_dataclass(value) else _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def default_values(cls: type, *, plain: bool = True) -> dict[str, Any]:
    """Dotted key -> what it is unless it is set; "???" where it must be set.

    Args:
        plain: Enums as their values and tuples as lists, as YAML has them; False = as the fields hold them.
    """
    found: dict[str, Any] = {}
    for item in fields(cls):
        value = _default(item)
        if is_dataclass(value):
            found |= {f"{item.name}.{key}": below for key, below in _leaves(value).items()}
        else:
            found[item.name] = value
    return {key: _plain(value) for key, value in found.items()} if plain else found


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return REQUIRED if item.default is MISSING else item.default


def _leaves(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found |= {f"{item.name}.{key}": below for key, below in _leaves(value).items()}
        else:
            found[item.name] = value
    return found


def settings_of(config: Any) -> dict[str, Any]:
    """Dotted key -> value of every setting, as YAML has them, in the order of the fields."""
    return {key: _plain(value) for key, value in _leaves(config).items()}


def changed_keys(config: Any) -> list[str]:
    """The settings that differ from their defaults, as `key=value` words in the order of the fields."""
    defaults = default_values(type(config))
    found = settings_of(config)
    return [f"{key}={word_of(value)}" for key, value in found.items() if value != defaults[key] or value == REQUIRED]


def word_of(value: Any) -> str:
    """A value as a user writes it behind `key=`: true, null, [1,2], and the values of Enums."""
    if isinstance(value, bool | None):
        return "null" if value is None else str(value).lower()
    return f"[{','.join(map(word_of, value))}]" if isinstance(value, list | tuple) else str(_plain(value))
