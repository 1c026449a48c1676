"""From committed units to a dataset: the global index, `dataset.json`, and nothing else left lying about.

Streams over the units once, in memory for a few of them, and gives the same bytes whenever it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.index import INDEX_KEY, merge, read_unit_index
from data_pipeline.ledger import Ledger
from data_pipeline.plan import PLAN_KEY, Plan
from data_pipeline.store.base import Store
from data_pipeline.store.local import LocalStore
from data_pipeline.unit import unit_key

DATASET_KEY = "dataset.json"
_READERS = 16
_UNIT_NAME = re.compile(r"units/(\d{6,})\.json")
INDEX_NAME = re.compile(r"units/(\d{6,})(?:-[0-9a-f]{12})?\.arrow")
_STORAGE = ("codec", "crf", "crop", "gop", "jpeg_quality", "short_side")


def committed_units(store: Store) -> set[int]:
    """Numbers of the units whose commit record is there: one listing."""
    return {int(match[1]) for key in store.list("units/") if (match := _UNIT_NAME.fullmatch(key))}


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


def read_dataset(store: Store) -> dict[str, Any]:
    """`dataset.json`. Raises: FileNotFoundError before the dataset is complete."""
    return dict(json.loads(store.read(DATASET_KEY)))


def withdraw(store: Store) -> None:
    """Take `dataset.json` away before units change: until `finalize` has run again, the dataset is in work."""
    store.delete(DATASET_KEY)


@dataclass(frozen=True)
class CommittedUnit:
    """One unit as it is in the store."""

    unit: int
    record: dict[str, Any]
    raw: bytes  # the record's own bytes
    index: pa.Table


def read_unit(store: Store, plan: Plan, unit: int) -> CommittedUnit:
    """Commit record and sample index of one unit.

    Raises:
        FileNotFoundError: the unit is not committed.
        ValueError: record or index are damaged or belong to another plan; the message says how to mend it.
    """
    raw = store.read(unit_key(unit))
    try:
        return _read_unit(store, plan, unit, raw)
    except FileNotFoundError as error:
        again = store.read(unit_key(unit))
        if again == raw:
            raise ValueError(f"{unit_key(unit)} cannot be used: {error!s}; {rebuild_remedy(store, unit)}") from error
        return _read_unit(store, plan, unit, again)  # another run wrote the unit anew between record and index


def _read_unit(store: Store, plan: Plan, unit: int, raw: bytes) -> CommittedUnit:
    try:
        record = json.loads(raw)
        if record["format"] != 1 or record["unit"] != unit or record["inputs"] != plan.inputs(unit):
            raise ValueError("it is not of this plan")
        data = store.read(record["index"]["name"])
        if hashlib.sha256(data).hexdigest() != record["index"]["sha256"]:
            raise ValueError(f"{record['index']['name']} is not the index it was committed with")
        return CommittedUnit(unit, record, raw, read_unit_index(data))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{unit_key(unit)} cannot be used: {error!s}; {rebuild_remedy(store, unit)}") from error


def rebuild_remedy(store: Store, unit: int) -> str:
    """How a user mends one unit."""
    return f"delete {store.uri(unit_key(unit))} and run the same build command again"


def ordered_units(store: Store, plan: Plan, units: Iterable[int] | None = None) -> Iterator[CommittedUnit]:
    """Every unit, or the `units` given, in order, a few read ahead. Raises: as `read_unit`."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[Future[CommittedUnit]] = deque()
        for unit in range(plan.units) if units is None else units:
            waiting.append(pool.submit(read_unit, store, plan, unit))
            if len(waiting) > 4 * _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
    for key in list(store.list("shards/")):
        if key not in claimed and re.fullmatch(r"shards/\d{6,}-\d{3,}\.tar", key):
            store.delete(key)
    indexes: dict[int, list[str]] = {}
    for key in store.list("units/"):
        if match := INDEX_NAME.fullmatch(key):
            indexes.setdefault(int(match[1]), []).append(key)
    for unit, keys in indexes.items():
        if len(keys) > 1:  # a unit that was written anew: its record says which one counts
            named = json.loads(store.read(unit_key(unit)))["index"]["name"]
            for key in keys:
                if key != named:
                    store.delete(key)
    if isinstance(store, LocalStore):
        for folder in ("shards", "units", "plan", ""):
            store.remove_leftovers(folder)
