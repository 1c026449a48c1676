"""One value of a setting, from the text of a YAML node to the type of its field.

The field's type decides how a text is read, not YAML's guess at a type. So `1e-3` is a number for a field of type
float and a name for a field of type str, and `007` stays `007` where a name is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml

LARGEST = 2**63 - 1
"""The largest whole number of a setting: torch and NumPy count with 64 bits."""
_YAML = "tag:yaml.org,2002:"
NOTHING = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)


def type_name(kind: Any) -> str:
    """A field's type for `--help`: `int`, `int or null`, `list of int`, `2 x float`, or the choices of an Enum."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("null" if part is NoneType else type_name(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "names with values"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} x {type_name(get_args(kind)[0])}"
    if issubclass(kind, Enum):
        return "|".join(str(choice.value) for choice in kind)
    return str(kind.__name__)


def read_value(kind: Any, node: yaml.Node) -> Any:
    """A YAML node as a value of a field's type.

    Args:
        kind: bool, int, float, str, an Enum, `X | None`, `list[X]`, `dict[str, X]` or `tuple[X, ...]` (fixed length).
        node: as `yaml.compose` gives it; the text of a scalar is used as it stands.
    Raises:
        ValueError: the text is none of that type. The message says what is wanted and goes on after `KEY=TEXT `.
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        (inner,) = [part for part in get_args(kind) if part is not NoneType]
        nothing = isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NOTHING
        return None if nothing else read_value(inner, node)
    if origin in (list, tuple):
        return _read_sequence(kind, node)
    if origin is dict:
        return _read_mapping(kind, node)
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"must be one value ({type_name(kind)})")
    if kind is not str and node.style is None and node.value in NOTHING:
        raise ValueError(f"must have a value ({type_name(kind)})")
    if kind is str and node.value and node.tag == f"{_YAML}null":  # checkpoint.upload: ~ would be the home directory
        raise ValueError("must be a text: write '' for none, or quotes around a name that is written so")
    return _read_scalar(kind, node.value)


def _read_sequence(kind: Any, node: yaml.Node) -> Any:
    parts = get_args(kind)
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError(f"must be a list like [{', '.join(type_name(part) for part in parts)}]")
    if get_origin(kind) is list:
        return [read_value(parts[0], item) for item in node.value]
    if len(node.value) != len(parts):
        raise ValueError(f"must be a list of {len(parts)} values, not {len(node.value)}")
    return tuple(read_value(part, item) for part, item in zip(parts, node.value, strict=True))


def _read_mapping(kind: Any, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("must be names with values, like {name: value}")
    found: dict[str, Any] = {}
    for name, value in node.value:
        key = read_value(str, name)
        if key in found:
            raise ValueError(f"names {key} twice; remove one of the two")
        found[key] = read_value(get_args(kind)[1], value)
    return found


def _read_scalar(kind: Any, text: str) -> Any:
    if kind is str:
        if "\0" in text:
            raise ValueError("must not hold a NUL byte, which no path can; remove it")
        return text
    if kind is bool:
        if text.lower() not in (*TRUE, *FALSE):
            raise ValueError("must be true or false")
        return text.lower() in TRUE
    if kind is int:
        try:
            number = int(text, 0)  # with 0x10 and 1_000; a leading zero, which YAML would take for octal, is refused
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not -LARGEST <= number <= LARGEST:
            raise ValueError("must lie between -(2**63 - 1) and 2**63 - 1")
        return number
    if kind is float:
        if _NOT_FINITE.fullmatch(text):
            return float(text.replace(".", ""))
        if not _FLOAT.fullmatch(text):
            raise ValueError("must be a number")
        return float(text.replace("_", ""))
    assert issubclass(kind, Enum), kind
    for choice in kind:
        if text == choice.value:
            return choice
    raise ValueError(f"must be one of {', '.join(str(choice.value) for choice in kind)}")


_PLAIN_TAGS = frozenset(
    _YAML + name
    for name in (
        "null",
        "bool",
        "int",
        "float",
        "str",
        "seq",
        "map",
        "timestamp",
        "value",
        "merge",
    )  # YAML's own guesses
)


def check_plain(node: yaml.Node, refusal: Callable[[yaml.Node, str], ValueError]) -> None:
    """Refuse a node that is more than values, lists and keys, whatever key it is for.

    Args:
        node: as `yaml.compose` gives it.
        refusal: makes the error from the node where the trouble is and the message.
    Raises:
        ValueError: a tag such as `!!python/object`, or an anchor whose value contains its own alias.
    """
    _check_plain(node, refusal, ())


def _check_plain(
    node: yaml.Node, refusal: Callable[[yaml.Node, str], ValueError], above: tuple[yaml.Node, ...]
) -> None:
    if node.tag not in _PLAIN_TAGS:
        tag = node.tag.replace(_YAML, "!!", 1)
        raise refusal(node, f"the tag {tag} is not understood; write the value without a tag")
    if any(node is other for other in above):
        raise refusal(node, "the value contains itself through an alias; write it without the alias")
    if isinstance(node, yaml.ScalarNode):
        return
    pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
    for item in (item for pair in pairs for item in pair):
        _check_plain(item, refusal, (*above, node))


def text_of(node: yaml.Node) -> str:
    """A node as one would write it on one line, for messages."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{','.join(map(text_of, node.value))}]"
    if isinstance(node, yaml.MappingNode):
        return f"{{{', '.join(f'{text_of(key)}: {text_of(value)}' for key, value in node.value)}}}"
    text = str(node.value)
    return repr(text) if "\0" in text else text
