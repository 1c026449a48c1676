"""Work units as they lie on the store: their files, their commit records, and who may write them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_pipeline.dataset.index import read_unit_index, unit_index
from data_pipeline.dataset.plan import Plan
from data_pipeline.store.base import Store


def unit_key(unit: int) -> str:
    """Key of a unit's commit record."""
    return f"units/{unit:06d}.json"


def unit_index_key(unit: int) -> str:
    """Key of a unit's sample index."""
    return f"units/{unit:06d}.arrow"


class UnitConflict(Exception):
    """Two runs built a unit with different results, and one wrote its shards over the other's."""


def commit_unit(
    plan: Plan, unit: int, store: Store, *, shards: list[Row], samples: list[Row], fates: list[Row]
) -> None:
    """Make a unit exist: its sample index, then its commit record. The shards are in the store already.

    Args:
        shards, samples: as `Packer` collects them.
        fates: one `row_fate` for each row of the unit, in order.
    Raises: as `build_unit`.
    """
    index = unit_index(samples)
    store.write(unit_index_key(unit), index)
    record = {
        "format": 1,
        "unit": unit,
        "inputs": plan.inputs(unit),
        "encoder": plan.encoder,
        "shards": shards,
        "index": {"name": unit_index_key(unit), "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "rows": fates,
    }
    _commit(store, unit, record)


def _commit(store: Store, unit: int, record: dict[str, Any]) -> None:
    data = canonical_json(record) + b"\n"
    if store.put_if_absent(unit_key(unit), data):
        return
    there = store.read(unit_key(unit))
    if there == data:
        return
    ours, theirs = _objects(record), _objects(json.loads(there))
    if any(theirs.get(name, digest) != digest for name, digest in ours.items()):
        store.delete(unit_key(unit))  # our files lie over theirs: neither result can be trusted to be whole
        raise UnitConflict(
            f"unit {unit} was built by two runs with different results; is another run writing {store.uri()}?"
        )
    for name in ours.keys() - theirs.keys():
        store.delete(name)  # the other run has meanwhile written the unit anew, without near-duplicates say


def _objects(record: dict[str, Any]) -> dict[str, str]:
    """Name -> SHA-256 of the files that a commit record vouches for."""
    return {item["name"]: item["sha256"] for item in [*record["shards"], record["index"]]}


Row = dict[str, Any]


def shard_key(unit: int, number: int) -> str:
    """Key of a unit's shard."""
    return f"shards/{unit:06d}-{number:03d}.tar"


def canonical_json(value: Any) -> bytes:
    """One JSON text for one value, whoever writes it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


_READERS = 16


_UNIT_NAME = re.compile(r"units/(\d{6,})\.json")


INDEX_NAME = re.compile(r"units/(\d{6,})(?:-[0-9a-f]{12})?\.arrow")


def committed_units(store: Store) -> set[int]:
    """Numbers of the units whose commit record is there: one listing."""
    return {int(match[1]) for key in store.keys("units/") if (match := _UNIT_NAME.fullmatch(key))}


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


def require_complete(store: Store, plan: Plan) -> None:
    """Raises: ValueError when units are not committed."""
    missing = set(range(plan.units)) - committed_units(store)
    if missing:
        raise ValueError(f"{len(missing)} units of {store.uri()} are not committed; complete the build first")
