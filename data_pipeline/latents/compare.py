"""Finds how the clips differ from what the latents were made of: a join of two indexes on 64-bit hashes of the keys.

Memory holds some 25 bytes for each clip on either side. No shard is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.plan import Dataset, PlanRows
from data_pipeline.dataset.records import COMMITTED, TAKEN_DOWN, RowFate
from data_pipeline.dataset.units import CommittedUnit, committed_units, ordered_units
from data_pipeline.latents.source import ClipsSource, opened_source
from data_pipeline.store.base import Store

REPLACED = "replaced"
"""Reason of a clip whose video was replaced by another one under the same key; the new one has a row of its own."""
GONE = frozenset({TAKEN_DOWN, REPLACED})
"""Reasons of rows that no longer stand for a clip of the source."""
NOWHERE = -1


def is_gone(fate: RowFate) -> bool:
    """Whether a row no longer stands for a clip."""
    return fate.reason in GONE


def key_hashes(keys: list[str]) -> npt.NDArray[np.int64]:
    """Hashes of keys by Python's own string hash, which is another one in each process."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


@dataclass
class _Columns:
    """Columns that grow by pieces."""

    hashes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    crcs: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    units: list[npt.NDArray[np.int32]] = field(default_factory=list)
    rows: list[npt.NDArray[np.int32]] = field(default_factory=list)


@dataclass(frozen=True)
class UnitDifference:
    """What has changed for the rows of one committed unit, by their positions in the unit."""

    gone: list[int]
    changed: dict[
        int, int
    ]  # row whose clip's sample has another checksum -> position of the clip in the source's index


@dataclass(frozen=True)
class Difference:
    """How the clips differ from what the latents were made of.

    Attributes:
        units: committed unit -> what has changed for its rows.
        new: positions in the index of the clips of those that have no row, rising.
        withdrawn: units that are not committed, and whose source shard is no longer there.
    """

    units: dict[int, UnitDifference]
    new: npt.NDArray[np.int64]
    withdrawn: list[int]

    def __bool__(self) -> bool:
        return bool(self.units or self.withdrawn or len(self.new))


def compare(dataset: Dataset, source: ClipsSource) -> Difference:
    """Compare the latents that there are with the clips.

    Raises:
        ValueError: a unit is damaged.
    """
    hashes, crcs = _source_columns(source)
    order = np.argsort(hashes, kind="stable")
    known = np.zeros(len(hashes), bool)
    units: dict[int, UnitDifference] = {}
    rows, withdrawn = _Columns(), []
    committed = committed_units(dataset.store)
    plan_rows = PlanRows(dataset)
    waiting = [unit for unit in range(dataset.plan.units) if unit not in committed]
    shards = {(entry.name, entry.sha256) for entry in source.description.shards}
    for unit in waiting:
        segment = dataset.plan.segment_of(unit)
        if (segment.name, segment.file_sha256) not in shards:
            withdrawn += [unit] if segment.rows else []
            continue
        ids = plan_rows.table(unit).column("id").to_pylist()
        planned = _positions(key_hashes(ids), hashes, order)
        known[planned[planned != NOWHERE]] = True
    _read_committed(dataset, sorted(committed & set(range(dataset.plan.units))), rows)
    if rows.hashes:
        own, own_crcs = np.concatenate(rows.hashes), np.concatenate(rows.crcs)
        places = _positions(own, hashes, order)
        found = places != NOWHERE
        known[places[found]] = True
        changed = found & (crcs[places] != own_crcs)
        _by_unit(units, ~found, changed, places, np.concatenate(rows.units), np.concatenate(rows.rows))
    return Difference(units, np.flatnonzero(~known), withdrawn)


def _source_columns(source: ClipsSource) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Hash of the key and CRC-32 of every clip."""
    hashes, crcs = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for table in source.columns("key", "crc32"):
        hashes.append(key_hashes(table.column("key").to_pylist()))
        crcs.append(table.column("crc32").to_numpy().astype(np.uint32))
    return np.concatenate(hashes), np.concatenate(crcs)


def _positions(
    wanted: npt.NDArray[np.int64], hashes: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Where each wanted hash stands in `hashes`, or NOWHERE.

    Args:
        order: sorts `hashes`.
    """
    if not len(hashes):
        return np.full(len(wanted), NOWHERE, np.int64)
    place = np.minimum(np.searchsorted(hashes, wanted, sorter=order), len(hashes) - 1)
    found = order[place]
    return np.where(hashes[found] == wanted, found, NOWHERE)


def _read_committed(dataset: Dataset, committed: list[int], into: _Columns) -> None:
    """The rows of committed units that stand for a clip, each with the checksum that the clip's sample had."""
    plan_rows = PlanRows(dataset)
    for unit in ordered_units(dataset, committed):
        live = [place for place, fate in enumerate(unit.record.rows) if not is_gone(fate)]
        if not live:
            continue
        crcs = _encoded_crcs(unit)
        refused = [place for place in live if unit.record.rows[place].fate != COMMITTED]
        if refused:
            extra = plan_rows.table(unit.unit).column("extra")
            crcs |= {unit.record.rows[place].row: json.loads(extra[place].as_py())["crc32"] for place in refused}
        into.hashes.append(key_hashes([unit.record.rows[place].id for place in live]))
        into.crcs.append(np.array([crcs[unit.record.rows[place].row] for place in live], np.uint32))
        into.units.append(np.full(len(live), unit.unit, np.int32))
        into.rows.append(np.array(live, np.int32))


def _encoded_crcs(unit: CommittedUnit) -> dict[int, int]:
    """Number of a committed row -> checksum of its clip's sample, which all its latents hold."""
    return dict(zip(unit.index.column("row").to_pylist(), unit.index.column("clip_crc32").to_pylist(), strict=True))


def _by_unit(
    units: dict[int, UnitDifference],
    gone: npt.NDArray[np.bool_],
    changed: npt.NDArray[np.bool_],
    places: npt.NDArray[np.int64],
    of_unit: npt.NDArray[np.int32],
    of_row: npt.NDArray[np.int32],
) -> None:
    for position in np.flatnonzero(gone | changed).tolist():
        unit = units.setdefault(int(of_unit[position]), UnitDifference([], {}))
        if gone[position]:
            unit.gone.append(int(of_row[position]))
        else:
            unit.changed[int(of_row[position])] = int(places[position])


def strays(latents: Store, clips: Store) -> list[str]:
    """What a check of latents against their clips finds; nothing where the latents are those of the clips as they are.

    Raises:
        ValueError: one of the two is no dataset of its kind, or a unit is damaged.
    """
    dataset = Dataset.open(latents, LATENTS)
    with opened_source(clips, named="--source ") as source:
        return list(_strays(dataset, source))


def _strays(dataset: Dataset, source: ClipsSource) -> Iterator[str]:
    """A line for each unit with latents whose clip is gone or has changed, and one for clips that have no latents."""
    difference = compare(dataset, source)
    remedy = "run launch/encode_latents.py again"
    for number, unit in sorted(difference.units.items()):
        rows = next(ordered_units(dataset, [number])).record.rows
        for what, places in (("no longer there", unit.gone), ("another one now", list(unit.changed))):
            if places:
                names = ", ".join(rows[place].id for place in places[:10])
                more = f" and {len(places) - 10} more" if len(places) > 10 else ""
                yield f"unit {number}: the clip is {what}: {names}{more}; {remedy}"
    if len(difference.new):
        yield f"{len(difference.new)} clips have no latents; {remedy}"
    if difference.withdrawn:
        yield f"{len(difference.withdrawn)} planned source shards are no longer there; {remedy}"
