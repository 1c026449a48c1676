"""Drops near-duplicate clips of different sources: the first clip of each kind stays, the others are rejected.

Two clips are alike when their perceptual hashes differ in few bits. The pass goes through the clips in the dataset's
order and drops a clip when an earlier clip of another row stays and is alike. So every dropped clip is like a clip that
stays, and the same pass again drops nothing. Clips of one row never count as alike: they show different times.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.config import MAX_DISTANCE
from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.fields import Measured
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.rewrite import rewrite_unit
from data_pipeline.dataset.row_fates import NEAR_DUPLICATE, RejectedStretch, RowFate
from data_pipeline.dataset.units import CommittedUnit, ordered_units, require_complete, unit_key
from data_pipeline.store.base import Store

HASH_BITS = 64


@dataclass(frozen=True)
class Alike:
    """For each clip, in order, the clip that stays in its place and the number of bits in which the two differ."""

    of: NDArray[np.int64]  # position of the clip that stays, or -1 for a clip that stays itself, [N]
    distance: NDArray[np.int64]  # bits, [N]

    @property
    def dropped(self) -> int:
        """Number of clips that do not stay."""
        return int(np.count_nonzero(self.of >= 0))


def find_alike(hashes: NDArray[np.uint64], rows: NDArray[np.int64], distance: int) -> Alike:
    """Find the clips that are near-duplicates of earlier clips.

    Hashes that differ in at most `distance` bits agree in one of `distance` + 1 bands of their bits, so only clips that
    share a band with the new one are compared with it.

    Args:
        hashes: of all clips, [N].
        rows: number of each clip's source row, [N].
        distance: largest number of bits in which near-duplicates differ.
    Raises:
        ValueError: distance out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance {distance} must lie between 0 and {MAX_DISTANCE} bits")
    edges = [HASH_BITS * band // (distance + 1) for band in range(distance + 2)]
    bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
    kept: list[defaultdict[int, array[int]]] = [defaultdict(lambda: array("q")) for _ in bands]
    of, differs = np.full(len(hashes), -1, np.int64), np.zeros(len(hashes), np.int64)
    for position in range(len(hashes)):
        value = int(hashes[position])
        buckets = [table[value >> low & mask] for table, (low, mask) in zip(kept, bands, strict=True)]
        nearest = _nearest(hashes, rows, position, buckets, distance)
        if nearest is None:
            for bucket in buckets:
                bucket.append(position)
        else:
            of[position], differs[position] = nearest
    return Alike(of, differs)


def _nearest(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], position: int, buckets: Iterable[array[int]], distance: int
) -> tuple[int, int] | None:
    """The nearest clip of another row within reach, the earliest of equals, and its distance."""
    best: tuple[int, int] | None = None
    for bucket in buckets:
        if not bucket:
            continue
        others = np.array(bucket)
        bits = np.bitwise_count(hashes[others] ^ hashes[position]).astype(np.int64)
        bits[rows[others] == rows[position]] = HASH_BITS + 1
        nearest = int(bits.argmin())
        if bits[nearest] <= distance:
            candidate = (int(bits[nearest]), int(others[nearest]))
            best = candidate if best is None else min(best, candidate)
    return None if best is None else (best[1], best[0])


class Dropped(NamedTuple):
    """What a pass did."""

    dropped: int  # clips that were dropped, or that would be
    clips: int  # clips before the pass
    description: DatasetFile | None  # dataset.json after the pass; None when the pass only counted


def drop_near_duplicates(dataset: Dataset, distance: int, *, write: bool = True, scratch: str | None = None) -> Dropped:
    """Drop near-duplicates from a dataset whose units are all committed, and finalize it. The other clips are copied.

    The same call completes an interrupted pass, to the same bytes. It needs some 100 bytes of memory for each clip.

    Args:
        distance: largest number of bits in which near-duplicates differ.
        write: False only counts.
        scratch: folder for temporary files; None takes the system's.
    Raises:
        ValueError: units are missing, or distance is out of range.
    """
    require_complete(dataset)
    store = dataset.store
    hashes, rows, clips, ends = array("Q"), array("q"), array("i"), array("q")
    for unit in ordered_units(dataset):
        hashes.extend(unit.index.column("phash").to_pylist())
        rows.extend(unit.index.column("row").to_pylist())
        clips.extend(unit.index.column("clip").to_pylist())
        ends.append(len(hashes))
    alike = find_alike(np.array(hashes, np.uint64), np.array(rows, np.int64), distance)
    if not write:
        return Dropped(alike.dropped, len(hashes), None)
    dropped: dict[int, dict[tuple[int, int], Measured]] = {}  # unit -> row and clip -> what was measured
    for at in np.flatnonzero(alike.of >= 0).tolist():
        stays = int(alike.of[at])
        measured: Measured = {"bits": int(alike.distance[at]), "of_row": rows[stays], "of_clip": clips[stays]}
        dropped.setdefault(bisect_right(ends, at), {})[rows[at], clips[at]] = measured
    if dropped:
        withdraw(store)
    for unit in ordered_units(dataset, dropped):
        try:
            _drop(store, unit, dropped[unit.unit], scratch)
        except FileNotFoundError:
            if store.read(unit_key(unit.unit)) == unit.raw:
                raise  # else another run of the same command has rewritten the unit and removed its old shards
    return Dropped(alike.dropped, len(hashes), finalize(dataset, scratch))


def _drop(store: Store, unit: CommittedUnit, dropped: dict[tuple[int, int], Measured], scratch: str | None) -> None:
    """Commit a unit anew without some clips, which are given by row and clip number with what was measured."""
    stretches: dict[int, list[RejectedStretch]] = {}
    for sample in unit.index.select(["row", "clip", "start", "end"]).to_pylist():
        measured = dropped.get((sample["row"], sample["clip"]))
        if measured is not None:
            stretches.setdefault(sample["row"], []).append(
                RejectedStretch(
                    clip=sample["clip"],
                    start=sample["start"],
                    end=sample["end"],
                    reason=NEAR_DUPLICATE,
                    measured=measured,
                )
            )
    fates = [_without(fate, stretches[fate.row]) if fate.row in stretches else fate for fate in unit.record.rows]
    with TemporaryDirectory(prefix="vidtwin-duplicates-", dir=scratch) as folder:
        rewrite_unit(store, unit, lambda sample: (sample.row, sample.clip) in dropped, fates, Path(folder))


def _without(fate: RowFate, dropped: list[RejectedStretch]) -> RowFate:
    """A committed row's fate after some of its clips became rejected stretches."""
    stretches = sorted([*fate.stretches, *dropped], key=_clip_number)
    clips = fate.clips - len(dropped)
    if clips:
        return RowFate.committed(fate, clips, stretches)
    return RowFate.rejected_in_parts(fate, NEAR_DUPLICATE, stretches)


def _clip_number(stretch: RejectedStretch) -> int:
    assert stretch.clip is not None, "a row with clips has no rejection of the entire row"
    return stretch.clip
