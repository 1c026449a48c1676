"""A number with its noun, as messages show it."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 shard`, `2 shards`.

    Args:
        number: how many.
        noun: the words for one of them.
        plural: the words for several; empty: `noun` with an s.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
