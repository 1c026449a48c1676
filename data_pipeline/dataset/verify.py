"""Proves a dataset: every source row has exactly one fate, the shards are the committed ones, and the index is right.

The totals that the build wrote are never trusted: they are computed again from the commit records and compared.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.dataset.description import DATASET_KEY, read_dataset
from data_pipeline.dataset.finalize import describe
from data_pipeline.dataset.index import INDEX_KEY, SampleRow, index_rows
from data_pipeline.dataset.index_file import index_remedy
from data_pipeline.dataset.kind import CLIPS, LATENTS, TEXTS, Kind
from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.dataset.latent_sums import UnitSums
from data_pipeline.dataset.latent_tensors import read_tensors
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.row_fates import COMMITTED
from data_pipeline.dataset.tar import ClipError, members
from data_pipeline.dataset.text_tensors import wrong_counts, wrong_texts
from data_pipeline.dataset.units import INDEX_NAME, CommittedUnit, committed_units, read_unit, rebuild_remedy
from data_pipeline.outside.regular import open_regular
from data_pipeline.store.base import Store
from data_pipeline.store.files import file_sha256


@dataclass
class Verification:
    """The result of a check. A dataset without problems is proven."""

    problems: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    units: int = 0
    shards: int = 0
    kind: Kind = CLIPS


def verify(store: Store, *, contents: bool = True) -> Verification:
    """Check one dataset.

    Args:
        contents: read every shard in full (digest, members, checksums); else only its size.
    Raises:
        ValueError: there is no plan to check against, or a damaged one.
    """
    dataset = Dataset.open(store)
    plan = dataset.plan
    result = Verification(kind=plan.kind)
    committed = committed_units(store)
    absent = [unit for unit in range(plan.units) if unit not in committed]
    if absent:
        result.problems.append(
            f"{len(absent)} of {plan.units} units are not committed (first: {absent[0]}); run the same "
            "command again that made the dataset"
        )
    for unit in sorted(unit for unit in committed if unit >= plan.units):
        result.problems.append(f"units/{unit:06d}.json is of no unit of the plan; delete it")
    with tempfile.TemporaryDirectory(prefix="vidtwin-verify-") as folder:
        units = _checked_units(dataset, sorted(committed - set(absent)), contents, Path(folder), result)
        if absent or result.problems:
            for _ in units:
                pass
        else:
            _check_description(dataset, units, Path(folder) / INDEX_KEY, result)
    return result


def _checked_units(
    dataset: Dataset, units: list[int], contents: bool, folder: Path, result: Verification
) -> Iterator[CommittedUnit]:
    """The units that can be read, each checked against the plan and its shards. Problems go to `result`."""
    store = dataset.store
    rows = PlanRows(dataset)
    claimed: set[str] = set()
    for number in units:
        if number >= dataset.plan.units:
            continue
        try:
            unit = read_unit(dataset, number)
        except ValueError as error:
            result.problems.append(str(error))
            continue
        result.ledger.add(unit.record)
        wrong = [*_wrong_rows(unit, rows), *_wrong_shards(unit, dataset, contents, folder)]
        result.problems += [f"unit {number}: {what}; {rebuild_remedy(store, number)}" for what in wrong]
        result.units += 1
        result.shards += len(unit.record.shards)
        claimed.update(unit.record.files())
        yield unit
    for key in (*store.keys("shards/"), *filter(INDEX_NAME.fullmatch, store.keys("units/"))):
        if key not in claimed:
            result.problems.append(
                f"{key} belongs to no committed unit; run the same command again that made the dataset, or delete it"
            )


def _wrong_rows(unit: CommittedUnit, rows: PlanRows) -> Iterator[str]:
    """Compare the rows of the record with the rows of the plan and with the clips in the index."""
    planned = [(row.row, row.id) for row in rows.unit(unit.unit)]
    recorded = [(fate.row, fate.id) for fate in unit.record.rows]
    if recorded != planned:
        for (number, identity), times in sorted((Counter(recorded) - Counter(planned)).items()):
            yield f"row {number} ({identity!r}) is recorded {times} times too often"
        for (number, identity), _ in sorted((Counter(planned) - Counter(recorded)).items()):
            yield f"row {number} ({identity!r}) has no fate"
        if Counter(recorded) == Counter(planned):
            yield "its rows are not in the plan's order"
    clips = Counter(unit.index.column("row").to_pylist())
    recorded_clips = Counter({fate.row: fate.clips for fate in unit.record.rows if fate.fate == COMMITTED})
    for row in sorted(set(clips) | set(recorded_clips)):
        if clips[row] != recorded_clips[row]:
            yield f"row {row} is recorded with {recorded_clips[row]} clips, the index has {clips[row]}"
    keys = Counter(unit.index.column("key").to_pylist())
    yield from (f"sample {key} is in the index {times} times" for key, times in keys.items() if times > 1)


def _wrong_shards(unit: CommittedUnit, dataset: Dataset, contents: bool, folder: Path) -> Iterator[str]:
    """Compare the shards on the store with the record and the index."""
    store, kind = dataset.store, dataset.plan.kind
    sums = UnitSums()
    readable = contents
    samples: list[list[SampleRow]] = [[] for _ in unit.record.shards]
    for sample in index_rows(unit.index, kind.row):
        if not 0 <= sample.shard < len(samples):
            yield f"sample {sample.key} is in shard {sample.shard}, the record has {len(samples)}"
            return
        samples[sample.shard].append(sample)
    for shard, inside in zip(unit.record.shards, samples, strict=True):
        try:
            size = store.size(shard.name)
        except FileNotFoundError:
            yield f"{shard.name} is missing"
            continue
        if size != shard.bytes:
            yield f"{shard.name} has {size} bytes, committed were {shard.bytes}"
            continue
        splits = Counter(sample.split for sample in inside)
        if shard.samples != len(inside) or Counter(shard.splits) != splits:
            yield f"{shard.name} is recorded with {shard.samples} samples, the index has {len(inside)}"
        if contents:
            with _local_copy(store, shard.name, folder) as path:
                wrong = list(_wrong_contents(path, shard, inside, kind.payload))
                if not wrong and kind is LATENTS:
                    wrong = list(_wrong_latents(path, inside, dataset.plan, sums))
                elif not wrong and kind is TEXTS:
                    wrong = list(wrong_texts(path, inside, dataset.plan))
                yield from wrong
                readable = readable and not wrong
    if readable and kind is LATENTS and (unit.record.latents is None or unit.record.latents.sums != sums.sums):
        yield "its sums are not those of the latents in its shards"
    if kind is TEXTS:
        yield from wrong_counts(unit)


def _wrong_contents(path: Path, shard: ShardEntry, samples: list[SampleRow], payload: str) -> Iterator[str]:
    """Compare the bytes of a shard with its entry and with the index."""
    name = shard.name
    if file_sha256(path) != shard.sha256:
        yield f"{name} is not what was committed (SHA-256 differs)"
        return
    with open_regular(path) as file:
        try:
            inside = list(members(file))
        except tarfile.TarError as error:
            yield f"{name} is not a tar archive: {error}"
            return
        if len(inside) != 3 * len(samples):
            yield f"{name} has {len(inside)} members, the index expects {3 * len(samples)}"
            return
        for number, sample in enumerate(sorted(samples, key=lambda sample: sample.offset)):
            files = inside[3 * number : 3 * number + 3]
            expected = [f"{sample.key}{suffix}" for suffix in (".json", payload, ".txt")]
            place = (files[0].header, files[2].end - files[0].header, files[1].offset, files[1].size)
            indexed = (sample.offset, sample.size, sample.video_offset, sample.video_size)
            file.seek(sample.offset)
            if [member.name for member in files] != expected or place != indexed:
                yield f"{name}: sample {sample.key} is not where the index says"
            elif zlib.crc32(file.read(sample.size)) != sample.crc32:
                yield f"{name}: sample {sample.key} has another checksum than in the index"


def _wrong_latents(path: Path, samples: list[SampleRow], plan: Plan, sums: UnitSums) -> Iterator[str]:
    """Compare the tensors of a shard with the plan, and add them to the sums of the unit."""
    shapes = LatentSettings.of(plan.settings).shapes
    with open_regular(path) as file:
        for sample in samples:
            file.seek(sample.video_offset)
            try:
                tensors = read_tensors(file.read(sample.video_size))
            except ClipError as error:
                yield f"sample {sample.key} {error}"
                continue
            found = {name: tensor.shape for name, tensor in tensors.items()}
            if found != shapes:
                yield f"sample {sample.key} has tensors of the shapes {found}, planned are {dict(shapes)}"
            elif not all(np.isfinite(tensor).all() for tensor in tensors.values()):
                yield f"sample {sample.key} has values that are infinite or no number"
            else:
                sums.add_values(tensors, sample.split)


@contextmanager
def _local_copy(store: Store, key: str, folder: Path) -> Iterator[Path]:
    """A local file of a shard: the shard itself, or a copy that is removed at the end of the block."""
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


def _check_description(
    dataset: Dataset, units: Iterator[CommittedUnit], index_path: Path, result: Verification
) -> None:
    """Compare `dataset.json` and `index.arrow` with the units."""
    store = dataset.store
    remedy = f"delete {store.uri(DATASET_KEY)} and run the same command again that made the dataset"
    try:
        expected = describe(dataset.plan, units, index_path)
    except ValueError as error:
        result.problems.append(str(error))
        for _ in units:
            pass
        return
    if result.problems:
        return
    try:
        stored = read_dataset(store).to_json()
    except FileNotFoundError:
        result.problems.append(f"{DATASET_KEY} is missing; run the same command again that made the dataset")
        return
    except ValueError as error:
        result.problems.append(str(error))
        return
    for key, value in sorted(expected.to_json().items()):
        if stored[key] != value:
            result.problems.append(f"{DATASET_KEY}: {key!r} is not what the commit records say; {remedy}")
    try:
        copy = index_path.with_name("stored.arrow")  # gigabytes for ten million clips, so it goes to a file
        store.read_to_file(INDEX_KEY, copy)
        same = file_sha256(copy) == expected.index.sha256
    except FileNotFoundError:
        same = False
    if not same:
        result.problems.append(f"{INDEX_KEY} is not the index of these shards; {index_remedy(dataset.plan.kind)}")
