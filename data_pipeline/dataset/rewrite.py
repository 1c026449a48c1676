"""A unit written anew with some of its samples left out."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.dataset.index import unit_index
from data_pipeline.dataset.tar import TarWriter
from data_pipeline.dataset.units import CommittedUnit, canonical_json, shard_key, unit_key
from data_pipeline.store.base import Store


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
