"""Sources taken down from a complete dataset.

A takedown copies the other samples of the shards concerned, byte for byte, and never decodes anything again.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.dataset.description import withdraw
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.ledger import REJECTED, TAKEN_DOWN
from data_pipeline.dataset.plan import (
    Plan,
)
from data_pipeline.dataset.rewrite import rewrite_unit
from data_pipeline.dataset.units import (
    canonical_json,
    ordered_units,
    require_complete,
)
from data_pipeline.store.base import Store

TAKEDOWN_KEY = "takedown.json"


def taken_down(store: Store) -> frozenset[str]:
    """Ids that were taken down; they stay out whenever one of their units is built again."""
    try:
        return frozenset(json.loads(store.read(TAKEDOWN_KEY))["ids"])
    except FileNotFoundError:
        return frozenset()


def take_down(store: Store, plan: Plan, ids: set[str], scratch: str | None = None) -> dict[str, Any]:
    """Remove every clip of some sources from a complete dataset; returns the new dataset.json.

    The list is kept in the dataset first, so that the sources stay out even if this is interrupted; the same call
    again completes it. Captions and names of the rows remain in the plan, which is not part of what training reads.

    Raises:
        ValueError: an id that no source has, or a dataset with units missing.
    """
    require_complete(store, plan)
    last_unit: dict[str, int] = {}
    for unit in ordered_units(store, plan):
        last_unit.update({fate["id"]: unit.unit for fate in unit.record["rows"] if fate["id"] in ids})
    if unknown := sorted(ids - last_unit.keys()):
        raise ValueError(f"{len(unknown)} ids are of no source of {store.uri()}: {', '.join(map(repr, unknown[:20]))}")
    store.write(TAKEDOWN_KEY, canonical_json({"ids": sorted(ids | taken_down(store))}))
    withdraw(store)
    concerned = set(last_unit.values())
    for unit in ordered_units(store, plan):
        if unit.unit in concerned:
            here = {identity for identity, number in last_unit.items() if number == unit.unit}
            if all(fate.get("reason") == TAKEN_DOWN for fate in unit.record["rows"] if fate["id"] in here):
                continue
            rows = [_taken(fate) if fate["id"] in here else fate for fate in unit.record["rows"]]
            with tempfile.TemporaryDirectory(prefix="vidtwin-takedown-", dir=scratch) as folder:
                rewrite_unit(store, unit, partial(_from_one_of, here), rows, Path(folder))
    return finalize(store, plan, scratch)


def _from_one_of(ids: set[str], sample: dict[str, Any]) -> bool:
    return sample["source"] in ids


def _taken(fate: dict[str, Any]) -> dict[str, Any]:
    """The fate of a row that was taken down."""
    kept = {key: fate[key] for key in ("row", "id", "retry_of") if key in fate}
    return kept | {"fate": REJECTED, "reason": TAKEN_DOWN, "measured": {}}
