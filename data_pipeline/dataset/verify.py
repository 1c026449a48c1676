"""Proves a dataset: every source row has exactly one fate, shards are what was committed, the index tells the truth.

Nothing is taken from the totals that the build wrote: they are computed again from the commit records and compared.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.dataset.description import DATASET_KEY
from data_pipeline.dataset.finalize import describe
from data_pipeline.dataset.index import INDEX_KEY
from data_pipeline.dataset.ledger import COMMITTED, Ledger
from data_pipeline.dataset.plan import Plan, PlanRows, read_plan
from data_pipeline.dataset.tar import members
from data_pipeline.dataset.units import INDEX_NAME, CommittedUnit, committed_units, read_unit, rebuild_remedy
from data_pipeline.store.base import Store
from data_pipeline.store.files import file_sha256


@dataclass
class Verification:
    """What a check found. No problems means: proven."""

    problems: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    units: int = 0
    shards: int = 0


def verify(store: Store, *, contents: bool = True) -> Verification:
    """Check one dataset.

    Args:
        contents: read every shard in full (digest, members, checksums); else only its size.
    Raises:
        ValueError: there is no plan, so nothing to check.
    """
    try:
        plan = read_plan(store)
    except FileNotFoundError:
        raise ValueError(f"{store.uri()} has no plan.json: it is not a dataset of launch/build_shards.py") from None
    found = Verification()
    committed = committed_units(store)
    absent = [unit for unit in range(plan.units) if unit not in committed]
    if absent:
        found.problems.append(
            f"{len(absent)} of {plan.units} units are not committed (first: {absent[0]}); run the build command again"
        )
    for unit in sorted(unit for unit in committed if unit >= plan.units):
        found.problems.append(f"units/{unit:06d}.json is of no unit of the plan; delete it")
    with tempfile.TemporaryDirectory(prefix="vidtwin-verify-") as folder:
        units = _checked_units(store, plan, sorted(committed - set(absent)), contents, Path(folder), found)
        if absent or found.problems:
            for _ in units:
                pass
        else:
            _check_dataset(store, plan, units, Path(folder) / INDEX_KEY, found)
    return found


def _checked_units(
    store: Store, plan: Plan, units: list[int], contents: bool, folder: Path, found: Verification
) -> Iterator[CommittedUnit]:
    rows = PlanRows(store, plan)
    claimed: set[str] = set()
    for number in units:
        if number >= plan.units:
            continue
        try:
            unit = read_unit(store, plan, number)
            found.ledger.add(unit.record)
        except (ValueError, KeyError, TypeError) as error:
            found.problems.append(str(error))
            continue
        wrong = [*_wrong_rows(unit, rows), *_wrong_shards(unit, store, contents, folder)]
        found.problems += [f"unit {number}: {what}; {rebuild_remedy(store, number)}" for what in wrong]
        found.units += 1
        found.shards += len(unit.record["shards"])
        claimed.update(shard["name"] for shard in unit.record["shards"])
        claimed.add(unit.record["index"]["name"])
        yield unit
    for key in (*store.keys("shards/"), *filter(INDEX_NAME.fullmatch, store.keys("units/"))):
        if key not in claimed:
            found.problems.append(f"{key} belongs to no committed unit; run the same build command again, or delete it")


def _wrong_rows(unit: CommittedUnit, rows: PlanRows) -> Iterator[str]:
    """Rows of the record against the plan's and against the clips in the index."""
    planned = [(row["row"], row["id"]) for row in rows.unit(unit.unit)]
    recorded = [(fate["row"], fate["id"]) for fate in unit.record["rows"]]
    if recorded != planned:
        for row, times in sorted((Counter(recorded) - Counter(planned)).items()):
            yield f"row {row[0]} ({row[1]!r}) is recorded {times} times too often"
        for row, _ in sorted((Counter(planned) - Counter(recorded)).items()):
            yield f"row {row[0]} ({row[1]!r}) has no fate"
        if Counter(recorded) == Counter(planned):
            yield "its rows are not in the plan's order"
    clips = Counter(unit.index.column("row").to_pylist())
    stated = Counter({fate["row"]: fate["clips"] for fate in unit.record["rows"] if fate["fate"] == COMMITTED})
    for row in sorted(set(clips) | set(stated)):
        if clips[row] != stated[row]:
            yield f"row {row} is recorded with {stated[row]} clips, the index has {clips[row]}"
    keys = Counter(unit.index.column("key").to_pylist())
    yield from (f"sample {key} is there {times} times" for key, times in keys.items() if times > 1)


def _wrong_shards(unit: CommittedUnit, store: Store, contents: bool, folder: Path) -> Iterator[str]:
    samples: list[list[dict[str, Any]]] = [[] for _ in unit.record["shards"]]
    for sample in unit.index.to_pylist():
        if not 0 <= sample["shard"] < len(samples):
            yield f"sample {sample['key']} is in shard {sample['shard']}, the record has {len(samples)}"
            return
        samples[sample["shard"]].append(sample)
    for shard, inside in zip(unit.record["shards"], samples, strict=True):
        try:
            size = store.size(shard["name"])
        except FileNotFoundError:
            yield f"{shard['name']} is missing"
            continue
        if size != shard["bytes"]:
            yield f"{shard['name']} has {size} bytes, committed were {shard['bytes']}"
            continue
        splits = Counter(sample["split"] for sample in inside)
        if shard["samples"] != len(inside) or Counter(shard["splits"]) != splits:
            yield f"{shard['name']} is recorded with {shard['samples']} samples, the index has {len(inside)}"
        if contents:
            with _local(store, shard["name"], folder) as path:
                yield from _wrong_contents(path, shard, inside)


def _wrong_contents(path: Path, shard: dict[str, Any], samples: list[dict[str, Any]]) -> Iterator[str]:
    name = shard["name"]
    if file_sha256(path) != shard["sha256"]:
        yield f"{name} is not what was committed (SHA-256 differs)"
        return
    with path.open("rb") as file:
        try:
            inside = list(members(file))
        except tarfile.TarError as error:
            yield f"{name} is not a tar archive: {error}"
            return
        if len(inside) != 3 * len(samples):
            yield f"{name} has {len(inside)} members, the index expects {3 * len(samples)}"
            return
        for number, sample in enumerate(sorted(samples, key=lambda sample: int(sample["offset"]))):
            files = inside[3 * number : 3 * number + 3]
            expected = [f"{sample['key']}{suffix}" for suffix in (".json", ".mp4", ".txt")]
            place = (files[0].header, files[2].end - files[0].header, files[1].offset, files[1].size)
            stated = (sample["offset"], sample["size"], sample["video_offset"], sample["video_size"])
            file.seek(sample["offset"])
            if [file.name for file in files] != expected or place != stated:
                yield f"{name}: sample {sample['key']} is not where the index says"
            elif zlib.crc32(file.read(sample["size"])) != sample["crc32"]:
                yield f"{name}: sample {sample['key']} has another checksum than in the index"


@contextmanager
def _local(store: Store, key: str, folder: Path) -> Iterator[Path]:
    """A local file of a shard: itself, or a copy for the moment."""
    local = store.local_path(key)
    if local is not None:
        yield local
        return
    path = folder / "shard.tar"
    store.read_to_file(key, path)
    try:
        yield path
    finally:
        path.unlink()


def _check_dataset(
    store: Store, plan: Plan, units: Iterator[CommittedUnit], index_path: Path, found: Verification
) -> None:
    """`dataset.json` and `index.arrow` against what the units say."""
    remedy = f"delete {store.uri(DATASET_KEY)} and run the same build command again"
    try:
        expected = describe(plan, units, index_path)
    except ValueError as error:
        found.problems.append(str(error))
        for _ in units:
            pass
        return
    if found.problems:
        return
    try:
        dataset = json.loads(store.read(DATASET_KEY))
    except (FileNotFoundError, ValueError) as error:
        found.problems.append(f"{DATASET_KEY} cannot be read ({error}); {remedy}")
        return
    for key in sorted(expected.keys() | dataset.keys()):
        if expected.get(key) != dataset.get(key):
            found.problems.append(f"{DATASET_KEY}: {key!r} is not what the commit records say; {remedy}")
    try:
        stored = index_path.with_name("stored.arrow")  # gigabytes for ten million clips: not in memory
        store.read_to_file(INDEX_KEY, stored)
        same = file_sha256(stored) == expected["index"]["sha256"]
    except FileNotFoundError:
        same = False
    if not same:
        found.problems.append(f"{INDEX_KEY} is not the index of these shards; {remedy}")
