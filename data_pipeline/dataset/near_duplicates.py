"""Near-duplicate clips of different sources: one of each stays, the others become rejections of their rows.

Clips are alike when their perceptual hashes differ in few bits. In the dataset's order, a clip is dropped when a clip
of another row that stays is alike. So the first of its kind stays, whatever is dropped has its reason in what stays,
and the same pass again finds nothing. Clips of one row never count as alike: they show different times.
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.config import MAX_DISTANCE
from data_pipeline.dataset.description import withdraw
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.ledger import NEAR_DUPLICATE, REJECTED
from data_pipeline.dataset.plan import Plan
from data_pipeline.dataset.rewrite import rewrite_unit
from data_pipeline.dataset.units import CommittedUnit, ordered_units, require_complete, unit_key
from data_pipeline.store.base import Store

HASH_BITS = 64


@dataclass(frozen=True)
class Alike:
    """For each clip, in order: the position of the clip that stays in its place, or -1, and the bits they differ in."""

    of: NDArray[np.int64]
    distance: NDArray[np.int64]

    @property
    def dropped(self) -> int:
        """How many clips do not stay."""
        return int(np.count_nonzero(self.of >= 0))


def find_alike(hashes: NDArray[np.uint64], rows: NDArray[np.int64], distance: int) -> Alike:
    """Which clips are near-duplicates of earlier ones.

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
        found = _nearest(hashes, rows, position, buckets, distance)
        if found is None:
            for bucket in buckets:
                bucket.append(position)
        else:
            of[position], differs[position] = found
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
            found = (int(bits[nearest]), int(others[nearest]))
            best = found if best is None else min(best, found)
    return None if best is None else (best[1], best[0])


class Dropped(NamedTuple):
    """What a pass did."""

    dropped: int  # clips
    clips: int  # that were there before
    dataset: dict[str, Any]  # dataset.json as it is now; empty when nothing was to be written


def drop_near_duplicates(
    store: Store, plan: Plan, distance: int, *, write: bool = True, scratch: str | None = None
) -> Dropped:
    """Drop near-duplicates from units that are all committed, and finalize; what stays in their shards is copied.

    Can be interrupted: the same call completes it, to the same bytes. Holds some 100 bytes for each clip.

    Args:
        write: False only counts.
    Raises:
        ValueError: units are missing, or distance is out of range.
    """
    require_complete(store, plan)
    hashes, rows, clips, ends = array("Q"), array("q"), array("i"), array("q")
    for unit in ordered_units(store, plan):
        hashes.extend(unit.index.column("phash").to_pylist())
        rows.extend(unit.index.column("row").to_pylist())
        clips.extend(unit.index.column("clip").to_pylist())
        ends.append(len(hashes))
    alike = find_alike(np.array(hashes, np.uint64), np.array(rows, np.int64), distance)
    if not write:
        return Dropped(alike.dropped, len(hashes), {})
    dropped: dict[int, dict[tuple[int, int], dict[str, Any]]] = {}  # unit -> row and clip -> what was measured
    for at in np.flatnonzero(alike.of >= 0).tolist():
        stays = int(alike.of[at])
        measured = {"bits": int(alike.distance[at]), "of_row": rows[stays], "of_clip": clips[stays]}
        dropped.setdefault(bisect_right(ends, at), {})[rows[at], clips[at]] = measured
    if dropped:
        withdraw(store)
    for unit in ordered_units(store, plan, dropped):
        try:
            _drop(store, unit, dropped[unit.unit], scratch)
        except FileNotFoundError:
            if store.read(unit_key(unit.unit)) == unit.raw:
                raise  # else another run of the same command has done it meanwhile, and removed what we wanted to copy
    return Dropped(alike.dropped, len(hashes), finalize(store, plan, scratch))


def _drop(
    store: Store, unit: CommittedUnit, dropped: dict[tuple[int, int], dict[str, Any]], scratch: str | None
) -> None:
    """Commit a unit anew without some clips, given by row and clip number with what was measured."""
    lost: dict[int, list[dict[str, Any]]] = {}
    for sample in unit.index.select(["row", "clip", "start", "end"]).to_pylist():
        place = (sample["row"], sample["clip"])
        if place in dropped:
            times = {name: sample[name] for name in ("clip", "start", "end")}
            lost.setdefault(sample["row"], []).append(times | {"reason": NEAR_DUPLICATE, "measured": dropped[place]})
    fates = [_fate(fate, lost[fate["row"]]) if fate["row"] in lost else fate for fate in unit.record["rows"]]
    with TemporaryDirectory(prefix="vidtwin-duplicates-", dir=scratch) as folder:
        rewrite_unit(store, unit, lambda sample: (sample["row"], sample["clip"]) in dropped, fates, Path(folder))


def _fate(fate: dict[str, Any], lost: list[dict[str, Any]]) -> dict[str, Any]:
    """A committed row's entry after some of its clips became rejected stretches."""
    stretches = sorted([*fate["rejected"], *lost], key=lambda item: int(item["clip"]))
    clips = fate["clips"] - len(lost)
    if clips:
        return fate | {"clips": clips, "rejected": stretches}
    kept = {key: value for key, value in fate.items() if key != "clips"}
    return kept | {"fate": REJECTED, "reason": NEAR_DUPLICATE, "rejected": stretches}
