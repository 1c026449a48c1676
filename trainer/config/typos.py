"""Which key was meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

SAME_SECTION, ANYWHERE = 0.65, 0.8
"""Similarity (`difflib`, 0 to 1) from which a name is taken for a misspelling: of a neighbour, of any key."""
AT_MOST = 3


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Keys that may have been meant, the likeliest first; empty where nothing is near.

    In this order: a key of the same section that is spelt nearly so, the same name in another section, any key that is
    spelt nearly so, and keys that share the rarest word of the name (`batch_size` and `data.global_batch`).

    Args:
        key: dotted, as it was given.
        known: all dotted keys.
    """
    section, _, name = key.rpartition(".")
    neighbours = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    if near := get_close_matches(name, neighbours, n=1, cutoff=SAME_SECTION):
        return [neighbours[near[0]]]
    if named := [other for other in known if other.rpartition(".")[2] == name]:
        return named[:AT_MOST]
    if near := get_close_matches(key, known, n=1, cutoff=ANYWHERE):
        return near
    sharing = [[other for other in known if word in _words(other)] for word in _words(key)]
    return min((keys for keys in sharing if 0 < len(keys) <= AT_MOST), key=len, default=[])


def hint(key: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown key."""
    near = [other for other in nearest_keys(key, known) if other != key]
    if not near:
        return "--help lists the keys"
    return f"did you mean {' or '.join(map(repr, near))}?"


def _words(key: str) -> list[str]:
    return key.rpartition(".")[2].split("_")
