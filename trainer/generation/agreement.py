"""Class agreement: how often a judge takes a generated clip for the class that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def agreement(wanted: Sequence[str], judged: Sequence[str], chance: float, judge: str) -> dict[str, Any]:
    """Compare classes.

    Args:
        wanted: the class that each clip was made for, or has.
        judged: the class that the judge takes it for.
        chance: the share that a judge would reach by guessing.
        judge: in words.
    Returns:
        `judge`, `clips`, `value` (share of clips, 0 to 1), `chance`, and `confusion`: class -> judged class -> clips.
    """
    confusion: dict[str, Counter[str]] = {}
    for mine, found in zip(wanted, judged, strict=True):
        confusion.setdefault(mine, Counter())[found] += 1
    right = sum(mine == found for mine, found in zip(wanted, judged, strict=True))
    return {
        "judge": judge,
        "clips": len(wanted),
        "value": right / len(wanted),
        "chance": chance,
        "confusion": {mine: dict(sorted(found.items())) for mine, found in sorted(confusion.items())},
    }


def chance_of_neighbours(wanted: Sequence[str], training: Mapping[str, int]) -> float:
    """The share that agrees where each clip's neighbour is drawn at random among the training latents.

    Args:
        wanted: class of each clip.
        training: class -> training latents.
    """
    total = sum(training.values())
    return sum(training.get(label, 0) / total for label in wanted) / len(wanted)
