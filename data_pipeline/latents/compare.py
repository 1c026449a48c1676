"""Finds how the clips differ from what the latents were made of: a join of two indexes on 64-bit hashes of the keys.

Memory holds some 30 bytes for each clip on either side. No shard is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.row_fates import COMMITTED, QUARANTINED, TAKEN_DOWN, RowFate
from data_pipeline.dataset.units import CommittedUnit, committed_units, done_ahead, read_unit
from data_pipeline.latents.segments import planned_crc32
from data_pipeline.latents.source import ClipsSource, opened_source
from data_pipeline.store.base import Store
from data_pipeline.store.counted import counted

REPLACED = "replaced"
"""Reason of a clip whose video was replaced by another one under the same key; the new one has a row of its own."""
RETRIED = "retried"
"""Reason of a clip that gave no latents and was planned again; it has another row now."""
GONE = frozenset({TAKEN_DOWN, REPLACED, RETRIED})
"""Reasons of rows that no longer stand for a clip of the source."""
_NOWHERE = -1
_NAMED = 10
"""Number of clips that a message names; further ones are only counted."""

Hashes = npt.NDArray[np.int64]


def is_gone(fate: RowFate) -> bool:
    """Whether a row no longer stands for a clip."""
    return fate.reason in GONE


@dataclass(frozen=True)
class UnitDifference:
    """What has changed for the rows of one committed unit, by their positions in the unit.

    Attributes:
        gone: rows whose clip is no longer there.
        changed: row whose clip's sample has another checksum, or is tried again -> position in the source's index.
    """

    gone: list[int]
    changed: dict[int, int]


@dataclass(frozen=True)
class Difference:
    """How the clips differ from what the latents were made of.

    Attributes:
        units: committed unit -> what has changed for its rows.
        new: positions in the source's index of the clips that have no row, rising.
        withdrawn: units that are not committed, and whose source shard is no longer there.
    """

    units: dict[int, UnitDifference]
    new: npt.NDArray[np.int64]
    withdrawn: list[int]

    def __bool__(self) -> bool:
        return bool(self.units or self.withdrawn or len(self.new))


def compare(dataset: Dataset, source: ClipsSource, *, retry: bool = False) -> Difference:
    """Compare the latents that there are with the clips.

    Args:
        retry: whether clips that could not be read count as changed.
    Raises:
        ValueError: a unit is damaged.
    """
    clips = _Clips(source)
    committed = committed_units(dataset.store)
    waiting, withdrawn = _uncommitted(dataset, source, committed)
    for hashes in done_ahead(waiting, partial(_planned, dataset)):
        clips.find(hashes)
    units: dict[int, UnitDifference] = {}
    for unit in done_ahead(sorted(committed & set(range(dataset.plan.units))), partial(_unit_rows, dataset)):
        places = clips.find(unit.hashes)
        found = places != _NOWHERE
        changed = found & (unit.quarantined if retry else False)
        changed[found] |= clips.crcs[places[found]] != unit.crcs[found]
        if not found.all() or changed.any():
            units[unit.number] = UnitDifference(
                gone=unit.rows[~found].tolist(),
                changed=dict(zip(unit.rows[changed].tolist(), places[changed].tolist(), strict=True)),
            )
    return Difference(units, np.flatnonzero(~clips.known), withdrawn)


class _Clips:
    """The clips of the source by the hashes of their keys.

    Attributes:
        crcs: CRC-32 of every clip's sample.
        known: whether a clip was found.
    """

    def __init__(self, source: ClipsSource) -> None:
        hashes, crcs = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
        for table in source.columns("key", "crc32"):
            hashes.append(_hashes(table.column("key").to_pylist()))
            crcs.append(table.column("crc32").to_numpy().astype(np.uint32))
        unordered = np.concatenate(hashes)
        self.crcs = np.concatenate(crcs)
        self.known = np.zeros(len(unordered), bool)
        self._order = np.argsort(unordered, kind="stable")
        self._ordered = unordered[self._order]

    def find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Where the clips with these hashes stand in the source's index, or _NOWHERE. They are known from now on."""
        if not len(self._ordered):
            return np.full(len(hashes), _NOWHERE, np.int64)
        place = np.minimum(np.searchsorted(self._ordered, hashes), len(self._ordered) - 1)
        places = np.where(self._ordered[place] == hashes, self._order[place], _NOWHERE)
        self.known[places[places != _NOWHERE]] = True
        return np.asarray(places, np.int64)


def _hashes(keys: list[str]) -> Hashes:
    """Hashes of keys by Python's own string hash, which is another one in each process."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def _uncommitted(dataset: Dataset, source: ClipsSource, committed: set[int]) -> tuple[list[int], list[int]]:
    """The units that wait to be encoded, and those that cannot be, because their source shard is no longer there."""
    shards = {(entry.name, entry.sha256) for entry in source.description.shards}
    waiting: list[int] = []
    withdrawn: list[int] = []
    for unit in range(dataset.plan.units):
        segment = dataset.plan.segment_of(unit)
        if unit not in committed and segment.rows:
            (waiting if (segment.name, segment.file_sha256) in shards else withdrawn).append(unit)
    return waiting, withdrawn


def _planned(dataset: Dataset, unit: int) -> Hashes:
    """Hashes of the keys of the clips of a unit."""
    return _hashes(PlanRows(dataset).table(unit).column("id").to_pylist())


@dataclass(frozen=True)
class _UnitRows:
    """The rows of a committed unit that stand for a clip."""

    number: int
    hashes: Hashes  # of the clip's key
    crcs: npt.NDArray[np.uint32]  # that the clip's sample had
    rows: npt.NDArray[np.int64]  # position in the unit
    quarantined: npt.NDArray[np.bool_]


def _unit_rows(dataset: Dataset, number: int) -> _UnitRows:
    unit = read_unit(dataset, number)
    fates = unit.record.rows
    live = [place for place, fate in enumerate(fates) if not is_gone(fate)]
    crcs = _encoded_crcs(unit)
    refused = [place for place in live if fates[place].fate != COMMITTED]
    if refused:
        extra = PlanRows(dataset).table(number).column("extra")
        crcs |= {fates[place].row: planned_crc32(extra[place].as_py(), fates[place].row) for place in refused}
    return _UnitRows(
        number,
        _hashes([fates[place].id for place in live]),
        np.array([crcs[fates[place].row] for place in live], np.uint32),
        np.array(live, np.int64),
        np.array([fates[place].fate == QUARANTINED for place in live], bool),
    )


def _encoded_crcs(unit: CommittedUnit) -> dict[int, int]:
    """Number of a committed row -> checksum of its clip's sample, which all its latents hold."""
    return dict(zip(unit.index.column("row").to_pylist(), unit.index.column("clip_crc32").to_pylist(), strict=True))


def strays(latents: Store, clips: Store) -> list[str]:
    """What a check of latents against their clips finds; nothing where the latents are those of the clips as they are.

    Raises:
        ValueError: one of the two is no dataset of its kind, or a unit is damaged.
    """
    dataset = Dataset.open(latents, LATENTS)
    with opened_source(clips, named="--source ") as source:
        return list(_strays(dataset, compare(dataset, source)))


def _strays(dataset: Dataset, difference: Difference) -> Iterator[str]:
    """A line for each unit with latents whose clip is gone or has changed, and one for clips that have no latents."""
    remedy = "run launch/encode_latents.py again"
    for number, unit in sorted(difference.units.items()):
        rows = read_unit(dataset, number).record.rows
        for what, places in (("no longer there", unit.gone), ("another one now", list(unit.changed))):
            if places:
                names = ", ".join(rows[place].id for place in places[:_NAMED])
                more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
                yield f"unit {number}: the clip is {what}: {names}{more}; {remedy}"
    if len(difference.new):
        yield f"{counted(len(difference.new), 'clip has', 'clips have')} no latents; {remedy}"
    if difference.withdrawn:
        shards = counted(len(difference.withdrawn), "planned source shard is", "planned source shards are")
        yield f"{shards} no longer there; {remedy}"
