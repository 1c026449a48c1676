"""Work units as they lie on the store: the keys of their files, how a unit is committed, and how it is read."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa

from data_pipeline.dataset.index import SampleRow, read_unit_index, unit_index
from data_pipeline.dataset.latent_records import UnitLatents
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.records import CommitRecord, IndexEntry, ShardEntry
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.text_records import UnitTexts
from data_pipeline.store.base import Store

Item = TypeVar("Item")
Result = TypeVar("Result")

_READERS = 16
_UNIT_NAME = re.compile(r"units/(\d{6,})\.json")
INDEX_NAME = re.compile(r"units/(\d{6,})(?:-[0-9a-f]{12})?\.arrow")


def unit_key(unit: int) -> str:
    """Key of a unit's commit record."""
    return f"units/{unit:06d}.json"


def unit_index_key(unit: int, digest: str = "") -> str:
    """Key of a unit's sample index; with its SHA-256 in hexadecimal the key of an index that was written anew."""
    return f"units/{unit:06d}-{digest[:12]}.arrow" if digest else f"units/{unit:06d}.arrow"


def shard_key(unit: int, number: int) -> str:
    """Key of a unit's shard."""
    return f"shards/{unit:06d}-{number:03d}.tar"


def unit_of_shard(name: str) -> int:
    """The unit that a shard belongs to, by the shard's key."""
    return int(name.removeprefix("shards/").partition("-")[0])


def number_of_shard(name: str) -> int:
    """The number that a shard has in its unit, by the shard's key; from 1000 on it has more than three digits."""
    return int(name.rpartition("-")[2].removesuffix(".tar"))


def units_with_index(store: Store) -> set[int]:
    """Numbers of the units that have a sample index. It takes one listing."""
    return {int(match[1]) for key in store.keys("units/") if (match := INDEX_NAME.fullmatch(key))}


def index_entry(name: str, data: bytes) -> IndexEntry:
    """The entry of an index file with these bytes."""
    return IndexEntry(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class UnitConflict(Exception):
    """Two runs built a unit with different results, and one run has overwritten the shards of the other."""


def commit_unit(
    dataset: Dataset,
    unit: int,
    *,
    shards: Sequence[ShardEntry],
    samples: Sequence[SampleRow],
    fates: Sequence[RowFate],
    latents: UnitLatents | None = None,
    texts: UnitTexts | None = None,
) -> None:
    """Write a unit's sample index and then its commit record, which makes the unit exist.

    Args:
        shards: the unit's shards, which are on the store already.
        samples: the index rows in the order of the shards, as `Packer` collects them.
        fates: one entry for each row of the unit, in order.
        latents: what only a unit of latents has.
        texts: what only a unit of texts has.
    Raises: as `build_unit`.
    """
    index = unit_index(samples, dataset.plan.kind.schema)
    dataset.store.write(unit_index_key(unit), index)
    record = CommitRecord(
        unit=unit,
        inputs=dataset.plan.inputs(unit),
        encoder=dataset.plan.encoder,
        shards=tuple(shards),
        index=index_entry(unit_index_key(unit), index),
        rows=tuple(fates),
        latents=latents,
        texts=texts,
    )
    _commit(dataset.store, record)


def _commit(store: Store, record: CommitRecord) -> None:
    key, data = unit_key(record.unit), record.to_bytes()
    if store.put_if_absent(key, data):
        return
    stored = store.read(key)
    if stored == data:
        return
    ours, theirs = record.files(), _parsed(store, record.unit, stored).files()
    if any(theirs.get(name, digest) != digest for name, digest in ours.items()):
        store.delete(key)  # our files have replaced theirs under the same names: neither result is whole
        raise UnitConflict(
            f"unit {record.unit} was built by two runs with different results; is another run writing {store.uri()}?"
        )
    for name in ours.keys() - theirs.keys():
        store.delete(name)  # the other run has since written the unit anew, for example without near-duplicates


def committed_units(store: Store) -> set[int]:
    """Numbers of the units that have a commit record. It takes one listing."""
    return {int(match[1]) for key in store.keys("units/") if (match := _UNIT_NAME.fullmatch(key))}


def read_record(store: Store, unit: int) -> CommitRecord:
    """The commit record of one unit.

    Raises:
        FileNotFoundError: the unit is not committed.
        ValueError: the record is damaged; the message names file, field and remedy.
    """
    return _parsed(store, unit, store.read(unit_key(unit)))


def _parsed(store: Store, unit: int, raw: bytes) -> CommitRecord:
    try:
        return CommitRecord.from_bytes(raw)
    except ValueError as error:
        raise _unusable(store, unit, error) from error


@dataclass(frozen=True)
class CommittedUnit:
    """One unit as it lies on the store."""

    unit: int
    record: CommitRecord
    raw: bytes  # the stored bytes of the record
    index: pa.Table  # one row for each sample, with the columns of the dataset's kind


def read_unit(dataset: Dataset, unit: int) -> CommittedUnit:
    """Commit record and sample index of one unit.

    Raises:
        FileNotFoundError: the unit is not committed.
        ValueError: record or index are damaged or belong to another plan; the message names file, field and remedy.
    """
    store, key = dataset.store, unit_key(unit)
    raw = store.read(key)
    try:
        return _read_unit(dataset, unit, raw)
    except FileNotFoundError as error:
        again = store.read(key)
        if again == raw:
            raise _unusable(store, unit, error) from error
        return _read_unit(dataset, unit, again)  # another run wrote the unit anew between the two reads


def _read_unit(dataset: Dataset, unit: int, raw: bytes) -> CommittedUnit:
    record = _parsed(dataset.store, unit, raw)
    try:
        if record.unit != unit or record.inputs != dataset.plan.inputs(unit):
            raise ValueError("it is not of this plan")
        data = dataset.store.read(record.index.name)
        if hashlib.sha256(data).hexdigest() != record.index.sha256:
            raise ValueError(f"{record.index.name} is not the index it was committed with")
        return CommittedUnit(unit, record, raw, read_unit_index(data, dataset.plan.kind.schema))
    except ValueError as error:
        raise _unusable(dataset.store, unit, error) from error


def _unusable(store: Store, unit: int, error: Exception) -> ValueError:
    return ValueError(f"{unit_key(unit)} cannot be used: {error!s}; {rebuild_remedy(store, unit)}")


def rebuild_remedy(store: Store, unit: int) -> str:
    """What a user does to have one unit built again, for messages."""
    return f"delete {store.uri(unit_key(unit))} and run the same command again that made the dataset"


def ordered_units(dataset: Dataset, units: Iterable[int] | None = None) -> Iterator[CommittedUnit]:
    """Every unit of the plan, or the given units, in order. A few are read ahead. Raises: as `read_unit`."""
    return done_ahead(range(dataset.plan.units) if units is None else units, partial(read_unit, dataset))


def done_ahead(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """What `work` returns for each item, in order. A few calls run ahead in threads, because a store may be far away.

    Raises: what `work` raises.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def require_complete(dataset: Dataset) -> None:
    """Raises: ValueError when a unit is not committed."""
    missing = set(range(dataset.plan.units)) - committed_units(dataset.store)
    if missing:
        raise ValueError(
            f"{len(missing)} units of {dataset.store.uri()} are not committed; complete the build first: "
            f"{dataset.plan.kind.made_by} --output {dataset.store.uri()} --status names the command"
        )
