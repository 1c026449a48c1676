"""How the settings of two plans differ, and the refusal of an output that was begun with other settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.dataset.kind import Kind
from data_pipeline.dataset.plan import Dataset
from data_pipeline.store.base import Store

SHOWN = 4  # differences that a message names


def settings_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` of every setting that differs between two plans."""
    return [
        f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]


def refuse_differences(store: Store, differences: Sequence[str]) -> None:
    """Refuse an output that was begun with other settings, where there are differences.

    Args:
        differences: as of `settings_difference`; the first few are shown.
    Raises:
        ValueError: naming them.
    """
    if not differences:
        return
    shown, more = ", ".join(differences[:SHOWN]), len(differences) - SHOWN
    shown += f", and {more} more" if more > 0 else ""
    raise ValueError(f"{store.uri()} was planned with other settings ({shown}); use the old ones, or another output")


def refuse_other_kind(old: Dataset, kind: Kind) -> None:
    """Refuse an output that holds a dataset of another kind. Raises: ValueError."""
    if old.plan.kind is not kind:
        raise ValueError(f"{old.store.uri()} holds a dataset of {old.plan.kind.name}; name another output")
