"""Changes to a complete dataset: quarantined rows tried again, sources taken down. (New manifests: `planner`.)

Neither rewrites what it does not have to: a retry is a new segment of units, a takedown copies the other samples of the
shards concerned, byte for byte, and never decodes anything again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.finalize import CommittedUnit, committed_units, finalize, ordered_units, withdraw
from data_pipeline.index import unit_index
from data_pipeline.ledger import QUARANTINED, REJECTED, TAKEN_DOWN
from data_pipeline.packing import canonical_json, shard_key
from data_pipeline.plan import PLAN_KEY, PLAN_SCHEMA, Plan, PlanRows, Segment, automatic_unit_rows, write_parts
from data_pipeline.store.base import Store
from data_pipeline.tar import TarWriter
from data_pipeline.unit import unit_key

TAKEDOWN_KEY = "takedown.json"


def taken_down(store: Store) -> frozenset[str]:
    """Ids that were taken down; they stay out whenever one of their units is built again."""
    try:
        return frozenset(json.loads(store.read(TAKEDOWN_KEY))["ids"])
    except FileNotFoundError:
        return frozenset()


def plan_retry(store: Store, plan: Plan, parent: int) -> Plan:
    """Add the rows of one manifest that are quarantined now as new units; the plan itself when there are none.

    Args:
        parent: position of the manifest's segment.
    Raises:
        ValueError: units are missing, so it is not known what is quarantined.
    """
    require_complete(store, plan)
    waiting: dict[int, str] = {}  # row -> its error
    homes: dict[int, list[int]] = {}  # unit -> its quarantined rows
    for unit in ordered_units(store, plan):
        segment = plan.segment_of(unit.unit)
        if segment.parent != parent:
            continue
        for fate in unit.record["rows"]:
            waiting.pop(fate["row"], None)
            if fate["fate"] == QUARANTINED:
                waiting[fate["row"]] = fate["error"]
                if segment.kind == "manifest":
                    homes.setdefault(unit.unit, []).append(fate["row"])
    if not waiting:
        return plan
    unit_rows = automatic_unit_rows(len(waiting))
    identity = canonical_json([len(plan.segments), sorted(waiting.items())])
    segment = Segment(
        kind="retry",
        parent=parent,
        name=plan.segments[parent].name,
        digest=hashlib.sha256(identity).hexdigest(),
        file_sha256="",
        rows=len(waiting),
        duplicates=0,
        first_row=0,
        unit_rows=unit_rows,
        first_unit=plan.units,
        units=-(-len(waiting) // unit_rows),
    )
    rows = PlanRows(store, plan)
    chosen = (
        pa.RecordBatch.from_pylist(
            [row | {"retry_of": waiting[row["row"]]} for row in rows.unit(unit) if row["row"] in waiting],
            schema=PLAN_SCHEMA,
        )
        for unit in sorted(homes)
    )
    write_parts(store, segment, (batch for batch in chosen if batch.num_rows))
    grown = plan.grown(segment)
    store.write(PLAN_KEY, grown.to_json())
    return grown


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


def require_complete(store: Store, plan: Plan) -> None:
    """Raises: ValueError when units are not committed."""
    missing = set(range(plan.units)) - committed_units(store)
    if missing:
        raise ValueError(f"{len(missing)} units of {store.uri()} are not committed; complete the build first")


def _from_one_of(ids: set[str], sample: dict[str, Any]) -> bool:
    return sample["source"] in ids


def rewrite_unit(
    store: Store,
    unit: CommittedUnit,
    gone: Callable[[dict[str, Any]], bool],
    rows: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Commit a unit anew without some samples. New files get new names; the record changes last, in one step.

    Args:
        gone: whether a sample, a row of the unit's index, is left out.
        rows: the unit's new entries in the ledger.
        folder: an empty local folder.
    """
    samples = [sample for sample in unit.index.to_pylist() if not gone(sample)]
    kept = [[s for s in samples if s["shard"] == k] for k in range(len(unit.record["shards"]))]
    free = 1 + max((int(shard["name"][-7:-4]) for shard in unit.record["shards"]), default=-1)
    shards: list[dict[str, Any]] = []
    replaced: list[str] = []
    for number, old in enumerate(unit.record["shards"]):
        inside = kept[number]
        if len(inside) == old["samples"]:
            shards.append(old)
        else:
            replaced.append(old["name"])
            if inside:
                name = shard_key(unit.unit, free)
                free += 1
                shards.append(_copy(store, old["name"], name, inside, folder))
        for sample in inside:
            sample["shard"] = len(shards) - 1
    index = unit_index([sample for inside in kept for sample in inside])
    digest = hashlib.sha256(index).hexdigest()
    index_key = f"units/{unit.unit:06d}-{digest[:12]}.arrow"
    store.write(index_key, index)
    described = {"name": index_key, "bytes": len(index), "sha256": digest}
    record = unit.record | {"shards": shards, "rows": rows, "index": described}
    store.write(unit_key(unit.unit), canonical_json(record) + b"\n")
    for key in (*replaced, unit.record["index"]["name"]):
        store.delete(key)


def _copy(store: Store, old: str, new: str, samples: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Copy some samples of a shard to a new one, setting their new offsets. Raises: ValueError for damage."""
    source, target = folder / "old.tar", folder / "new.tar"
    store.read_to_file(old, source)
    writer = TarWriter(target)
    with source.open("rb") as file:
        for sample in samples:
            file.seek(sample["offset"])
            data = file.read(sample["size"])
            if zlib.crc32(data) != sample["crc32"]:
                raise ValueError(f"{old}: sample {sample['key']} is damaged; run launch/verify_shards.py first")
            offset = writer.append(data)
            sample["video_offset"] += offset - sample["offset"]
            sample["offset"] = offset
    digest = writer.close()
    store.write_file(new, target)
    splits = Counter(sample["split"] for sample in samples)
    return {
        "name": new,
        "bytes": writer.bytes,
        "sha256": digest,
        "samples": len(samples),
        "splits": dict(sorted(splits.items())),
    }


def _taken(fate: dict[str, Any]) -> dict[str, Any]:
    """The fate of a row that was taken down."""
    kept = {key: fate[key] for key in ("row", "id", "retry_of") if key in fate}
    return kept | {"fate": REJECTED, "reason": TAKEN_DOWN, "measured": {}}
