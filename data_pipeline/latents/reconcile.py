"""Makes latents those of the clips as they are now. Nothing that is encoded is encoded again.

A clip that is new gets a row in a new segment of the plan. Of a clip that is gone the latents are removed. Where a
clip's sample has another checksum, the SHA-256 of its mp4 decides: if it is the same, caption, label, split and
description are taken over, and if not, the old latents are removed and the clip gets a new row.

A unit is written anew by `rewrite_unit`: its record changes last, in one step. The plan grows after that, in one step
too. So this can be killed anywhere, and the next call does what is left.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.dataset.description import withdraw
from data_pipeline.dataset.exact_sums import ChannelSums
from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.index import IndexRow, LatentRow, latent_rows
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.latent_sums import sums_of
from data_pipeline.dataset.latent_tensors import read_tensors
from data_pipeline.dataset.plan import PLAN_KEY, Dataset
from data_pipeline.dataset.rewrite import Renewal, rewrite_unit
from data_pipeline.dataset.row_fates import COMMITTED, TAKEN_DOWN, RowFate
from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.dataset.units import CommittedUnit, ordered_units
from data_pipeline.latents.compare import REPLACED, RETRIED, UnitDifference, compare
from data_pipeline.latents.segments import add_segments, with_segments, withdrawn
from data_pipeline.latents.source import ClipsSource
from data_pipeline.outside.documents import parse_json_object
from data_pipeline.store.base import Store


@dataclass
class Changes:
    """What was found and done, in clips."""

    new: int = 0
    gone: int = 0
    renewed: int = 0  # other caption, label, split or description
    replaced: int = 0  # another video under the same key
    retried: int = 0  # they gave no latents before, and have changed or are to be tried again

    def describe(self) -> str:
        """The changes as part of a line; empty where there are none."""
        named = {
            "new": self.new,
            "gone": self.gone,
            "with new texts": self.renewed,
            "with another video": self.replaced,
            "tried again": self.retried,
        }
        return ", ".join(f"{count} {name}" for name, count in named.items() if count)


def reconcile(
    dataset: Dataset, source: ClipsSource, scratch: str | None = None, *, retry: bool = False
) -> tuple[Dataset, Changes]:
    """Remove, renew and plan what the clips ask for, and return the dataset with its plan of now.

    Args:
        scratch: folder for temporary files; None takes the system's.
        retry: whether clips that could not be read are planned again.
    Raises:
        ValueError: a unit or a shard is damaged; the message names it.
        OSError: a store fails.
    """
    difference = compare(dataset, source, retry=retry)
    changes = Changes()
    if not difference:
        return dataset, changes
    withdraw(dataset.store)
    replaced: list[int] = []
    for unit in ordered_units(dataset, sorted(difference.units)):
        rewriting = _Rewriting(dataset, unit, source, changes)
        replaced += rewriting.apply(difference.units[unit.unit], scratch)
    changes.new = len(difference.new)
    new = np.union1d(difference.new, np.array(replaced, np.int64))
    return _grown(dataset, source, new, difference.withdrawn), changes


class _Rewriting:
    """One committed unit whose clips have changed."""

    def __init__(self, dataset: Dataset, unit: CommittedUnit, source: ClipsSource, changes: Changes) -> None:
        self._store, self._unit, self._source, self._changes = dataset.store, unit, source, changes
        self._of_row: dict[int, list[LatentRow]] = {}
        for sample in latent_rows(unit.index):
            self._of_row.setdefault(sample.row, []).append(sample)

    def apply(self, difference: UnitDifference, scratch: str | None) -> list[int]:
        """Write the unit anew. Returns: positions in the source's index of the clips that need a row of their own.

        Raises: ValueError for damage.
        """
        rows = list(self._unit.record.rows)
        renewed: dict[str, Renewal] = {}
        replaced: list[int] = []
        for place in difference.gone:
            rows[place] = RowFate.rejected(rows[place], TAKEN_DOWN, {})
            self._changes.gone += 1
        for place, position in difference.changed.items():
            texts = self._texts(rows[place], self._source.row(position))
            if texts is None:
                refused = rows[place].fate != COMMITTED
                rows[place] = RowFate.rejected(rows[place], RETRIED if refused else REPLACED, {})
                replaced.append(position)
                self._changes.retried += refused
                self._changes.replaced += not refused
            else:
                renewed |= texts
                self._changes.renewed += 1
        out = {row.row for row in rows if row.fate != COMMITTED}
        latents = self._unit.record.latents
        assert latents is not None, "units of latents have this field"
        latents = replace(latents, sums=self._sums(out, renewed))
        with tempfile.TemporaryDirectory(prefix="vidtwin-latents-", dir=scratch) as folder:
            rewrite_unit(
                self._store,
                self._unit,
                partial(_is_of_one_of, out),
                rows,
                Path(folder),
                kind=LATENTS,
                renewed=renewed,
                latents=latents,
            )
        return replaced

    def _texts(self, fate: RowFate, clip: dict[str, Any]) -> dict[str, Renewal] | None:
        """Sample key -> its new texts, when the video is still the one that was encoded; else None."""
        if fate.fate != COMMITTED:
            return None
        shard = self._source.description.shards[clip["shard"]].name
        members = _members(self._source.store, shard, clip["key"], clip["offset"], clip["size"], clip["crc32"])
        samples = self._of_row[fate.row]
        first = _described(self._members(samples[0])["json"], samples[0].key)
        if hashlib.sha256(members["mp4"]).hexdigest() != first.get("clip_sha256"):
            return None
        description = _described(members["json"], clip["key"])
        values = {"label": clip["label"], "split": clip["split"]}
        renewal = Renewal(
            describe=partial(_described_anew, description, values),
            caption=members["txt"],
            values=values | {"clip_crc32": clip["crc32"]},
        )
        return {sample.key: renewal for sample in samples}

    def _members(self, sample: LatentRow) -> dict[str, bytes]:
        shard = self._unit.record.shards[sample.shard].name
        return _members(self._store, shard, sample.key, sample.offset, sample.size, sample.crc32)

    def _sums(self, out: set[int], renewed: dict[str, Renewal]) -> dict[str, ChannelSums]:
        """The sums over the samples that stay, with their new splits."""
        staying = [sample for row, samples in self._of_row.items() if row not in out for sample in samples]
        return sums_of(
            (read_tensors(self._members(sample)["safetensors"]), split)
            for sample in staying
            for split in [renewed[sample.key].values["split"] if sample.key in renewed else sample.split]
        )


def _is_of_one_of(rows: set[int], sample: IndexRow) -> bool:
    return sample.row in rows


def _described_anew(clip: dict[str, Any], values: dict[str, Any], old: bytes) -> bytes:
    """The `.json` of a latent sample with another description of its clip."""
    return canonical_json(parse_json_object(old) | values | {"clip": clip})


def _described(description: bytes, key: str) -> dict[str, Any]:
    """The `.json` of a sample. Raises: ValueError with the sample."""
    try:
        return parse_json_object(description)
    except ValueError as error:
        raise ValueError(f"the .json of sample {key} cannot be read: {error}; restore the shard") from error


def _members(store: Store, shard: str, key: str, offset: int, size: int, crc32: int) -> dict[str, bytes]:
    """The members of a sample by extension. Raises: ValueError when the sample is damaged."""
    raw = store.read(shard, offset, size)
    try:
        if len(raw) != size or zlib.crc32(raw) != crc32:
            raise ClipError("has another checksum than in the index")
        return parse_members(raw, key)
    except ClipError as error:
        raise ValueError(
            f"{store.uri(shard)}: sample {key} {error}; run launch/verify_shards.py --shards {store.uri()}"
        ) from error


def _chosen(source: ClipsSource, positions: npt.NDArray[np.int64]) -> Iterator[tuple[int, pa.Table]]:
    """Position of a shard and the index rows of the chosen clips in it, for every shard that has some."""
    first = 0
    for shard, clips in source.tables():
        begin, end = np.searchsorted(positions, [first, first + clips.num_rows])
        if begin < end:
            yield shard, clips.take(pa.array(positions[begin:end] - first))
        first += clips.num_rows


def _grown(dataset: Dataset, source: ClipsSource, new: npt.NDArray[np.int64], empty: list[int]) -> Dataset:
    """Plan the new clips, and empty the units that wait for source shards which are no longer there.

    Args:
        new: positions in the index of the clips.
        empty: numbers of the units.
    """
    plan, store = dataset.plan, dataset.store
    units = set(empty)
    segments = [withdrawn(segment) if segment.first_unit in units else segment for segment in plan.segments]
    add_segments(store, segments, source, _chosen(source, new))
    if segments == list(plan.segments):
        return dataset
    grown = with_segments(plan, segments)
    store.write(PLAN_KEY, grown.to_json())
    return Dataset(store, grown)
