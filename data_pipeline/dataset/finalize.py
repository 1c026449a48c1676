"""From committed units to a dataset: the global index, `dataset.json`, and nothing else left lying about.

Streams over the units once, in memory for a few of them, and gives the same bytes whenever it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.dataset.description import DATASET_KEY, read_dataset
from data_pipeline.dataset.index import INDEX_KEY, merge
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import PLAN_KEY, Plan
from data_pipeline.dataset.units import INDEX_NAME, CommittedUnit, committed_units, ordered_units, unit_key
from data_pipeline.store.base import Store

_STORAGE = ("codec", "crf", "crop", "gop", "jpeg_quality", "short_side")


def status(store: Store) -> str:
    """One line on how far a dataset is, from anywhere. Raises: ValueError when nothing was planned there."""
    try:
        plan = Plan.from_json(store.read(PLAN_KEY))
    except FileNotFoundError:
        raise ValueError(f"{store.uri()} has no plan.json: nothing was planned there yet") from None
    done = len(committed_units(store))
    try:
        whole = read_dataset(store)["plan"] == plan.digest
    except FileNotFoundError:
        whole = False
    share = f"{100 * done / max(1, plan.units):.1f} %"
    state = "complete" if whole else "committed, not yet finalized" if done == plan.units else "in work or interrupted"
    return f"{store.uri()}: {done} of {plan.units} units committed ({share}) of {plan.rows} rows; {state}"


@dataclass
class _Totals:
    ledger: Ledger = field(default_factory=Ledger)
    shards: list[dict[str, Any]] = field(default_factory=list)
    records: Any = field(default_factory=hashlib.sha256)


def describe(plan: Plan, units: Iterable[CommittedUnit], index_path: Path) -> dict[str, Any]:
    """Write the global index to a local file and return what `dataset.json` must say. Same units, same result.

    Raises: ValueError when the rows do not balance.
    """
    totals = _Totals()
    index = merge(_collected(units, totals), index_path)
    ledger = totals.ledger
    if not ledger.input == ledger.accounted == plan.rows or index.samples != ledger.clips:
        raise ValueError(
            f"the ledger does not balance: {plan.rows} source rows, {ledger.accounted} accounted for; {ledger.clips} "
            f"clips, {index.samples} in the index; launch/verify_shards.py says which unit is wrong"
        )
    return {
        "format": 1,
        "fps": plan.settings["clip.fps"],
        "storage": {name: plan.settings[f"clip.{name}"] for name in _STORAGE if f"clip.{name}" in plan.settings},
        "encoder": plan.encoder,
        "plan": plan.digest,
        "records": totals.records.hexdigest(),
        "shards": totals.shards,
        "splits": dict(sorted(ledger.splits.items())),
        "samples": index.samples,
        "rows": ledger.rows_json(),
        "clips": ledger.clips_json(),
        "index": {"name": INDEX_KEY, "bytes": index.bytes, "sha256": index.sha256},
    }


def _collected(units: Iterable[CommittedUnit], totals: _Totals) -> Iterator[tuple[pa.Table, int]]:
    for unit in units:
        yield unit.index, len(totals.shards)
        totals.ledger.add(unit.record)
        totals.shards += unit.record["shards"]
        totals.records.update(unit.raw)


def finalize(store: Store, plan: Plan, scratch: str | None = None) -> dict[str, Any]:
    """Write `index.arrow` and then `dataset.json`; returns the latter.

    Raises: as `read_unit` and `describe`.
    """
    with tempfile.TemporaryDirectory(prefix="vidtwin-index-", dir=scratch) as folder:
        path = Path(folder) / INDEX_KEY
        dataset = describe(plan, ordered_units(store, plan), path)
        store.write_file(INDEX_KEY, path)
    _sweep(store, {shard["name"] for shard in dataset["shards"]})
    store.write(DATASET_KEY, (json.dumps(dataset, sort_keys=True, indent=1) + "\n").encode())
    return dataset


def _sweep(store: Store, claimed: set[str]) -> None:
    """Remove what killed attempts left: shards and indexes that no record names. Only names of this pipeline's."""
    for key in list(store.keys("shards/")):
        if key not in claimed and re.fullmatch(r"shards/\d{6,}-\d{3,}\.tar", key):
            store.delete(key)
    indexes: dict[int, list[str]] = {}
    for key in store.keys("units/"):
        if match := INDEX_NAME.fullmatch(key):
            indexes.setdefault(int(match[1]), []).append(key)
    for unit, keys in indexes.items():
        if len(keys) > 1:  # a unit that was written anew: its record says which one counts
            named = json.loads(store.read(unit_key(unit)))["index"]["name"]
            for key in keys:
                if key != named:
                    store.delete(key)
    for folder in ("shards", "units", "plan", ""):
        store.remove_leftovers(folder)
