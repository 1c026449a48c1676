"""Makes a dataset of committed units: writes the global index and `dataset.json`, and removes what belongs to neither.

The units are read once as a stream; memory holds a few of them. The same units give the same bytes on every run.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.dataset.description import DATASET_KEY, DatasetFile, read_dataset
from data_pipeline.dataset.index import INDEX_KEY, merge
from data_pipeline.dataset.kind import LATENTS, TEXTS
from data_pipeline.dataset.latent_records import LatentsDescription, LatentSettings, LatentTotals
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Dataset, Plan, read_plan
from data_pipeline.dataset.records import IndexEntry, ShardEntry
from data_pipeline.dataset.text_records import TextsDescription, TextSettings, TextTotals
from data_pipeline.dataset.units import INDEX_NAME, CommittedUnit, committed_units, ordered_units, read_record
from data_pipeline.store.base import Store

_STORAGE = ("codec", "crf", "crop", "gop", "jpeg_quality", "short_side")


def status(store: Store) -> str:
    """One line on how many units of a dataset are committed. Raises: ValueError when nothing was planned there."""
    try:
        plan = read_plan(store)
    except FileNotFoundError:
        raise ValueError(f"{store.uri()} has no plan.json: nothing was planned there yet") from None
    done = len(committed_units(store))
    complete = done == plan.units and described(Dataset(store, plan)) is not None
    share = f"{100 * done / max(1, plan.units):.1f} %"
    state = "committed, not yet finalized" if done == plan.units else "in work or interrupted"
    return (
        f"{store.uri()}: {done} of {plan.units} units committed ({share}) of {plan.rows} {plan.kind.rows}; "
        f"{'complete' if complete else state}"
    )


def described(dataset: Dataset) -> DatasetFile | None:
    """The content of `dataset.json`; None when it is missing or belongs to another plan, so the dataset is in work."""
    try:
        description = read_dataset(dataset.store)
    except FileNotFoundError:
        return None
    return description if description.plan == dataset.plan.digest else None


@dataclass
class _Totals:
    ledger: Ledger = field(default_factory=Ledger)
    shards: list[ShardEntry] = field(default_factory=list)
    records: Any = field(default_factory=hashlib.sha256)
    latents: LatentTotals = field(default_factory=LatentTotals)
    texts: TextTotals = field(default_factory=TextTotals)


def describe(plan: Plan, units: Iterable[CommittedUnit], index_path: Path) -> DatasetFile:
    """Write the global index to a local file and return what `dataset.json` must hold.

    The same units give the same result. Raises: ValueError when the rows do not balance.
    """
    totals = _Totals()
    index = merge(_collected(units, totals), index_path, plan.kind.schema)
    ledger = totals.ledger
    if not ledger.input == ledger.accounted == plan.rows or index.samples != ledger.clips:
        raise ValueError(
            f"the ledger does not balance: {plan.rows} source {plan.kind.rows}, {ledger.accounted} accounted for; "
            f"{ledger.clips} {plan.kind.name}, {index.samples} in the index; launch/verify_shards.py says which unit "
            "is wrong"
        )
    return DatasetFile(
        **_contents(plan, totals),
        encoder=plan.encoder,
        plan=plan.digest,
        records=totals.records.hexdigest(),
        shards=tuple(totals.shards),
        splits=dict(sorted(ledger.splits.items())),
        samples=index.samples,
        rows=ledger.row_counts(),
        clips=ledger.clip_counts(),
        index=IndexEntry(name=INDEX_KEY, bytes=index.bytes, sha256=index.sha256),
    )


def _contents(plan: Plan, totals: _Totals) -> dict[str, Any]:
    """Fields of DatasetFile: frames a second, the settings that readers may need, and what only one kind has."""
    settings = plan.settings
    if plan.kind is TEXTS:
        latents_seen = (segment.file_sha256 for segment in plan.segments)
        texts = TextsDescription.of(TextSettings.of(settings), totals.texts, latents_seen)
        return {"stored_fps": 0, "storage": {}, "texts": texts}
    if plan.kind is LATENTS:
        latents = LatentSettings.of(settings)
        return {
            "stored_fps": latents.fps,
            "storage": {"short_side": latents.windows["image_size"]},
            "latents": LatentsDescription.of(latents, totals.latents),
        }
    storage = {name: settings[f"clip.{name}"] for name in _STORAGE if f"clip.{name}" in settings}
    return {"stored_fps": settings["clip.fps"], "storage": storage}


def _collected(units: Iterable[CommittedUnit], totals: _Totals) -> Iterator[tuple[pa.Table, int]]:
    """The index of each unit with the number of shards before it; adds each unit to the totals."""
    for unit in units:
        yield unit.index, len(totals.shards)
        totals.ledger.add(unit.record)
        totals.shards += unit.record.shards
        totals.records.update(unit.raw)
        if unit.record.latents is not None:
            totals.latents.add(unit.record.latents)
        if unit.record.texts is not None:
            totals.texts.add(unit.record.texts)


def finalize(dataset: Dataset, scratch: str | None = None) -> DatasetFile:
    """Write `index.arrow` and then `dataset.json`, and return the content of the latter.

    Args:
        scratch: folder for temporary files; None takes the system's.
    Raises: as `read_unit` and `describe`.
    """
    store = dataset.store
    with tempfile.TemporaryDirectory(prefix="vidtwin-index-", dir=scratch) as folder:
        path = Path(folder) / INDEX_KEY
        description = describe(dataset.plan, ordered_units(dataset), path)
        store.write_file(INDEX_KEY, path)
    _remove_unclaimed(store, {shard.name for shard in description.shards})
    store.write(DATASET_KEY, description.to_bytes())
    return description


def _remove_unclaimed(store: Store, claimed: set[str]) -> None:
    """Remove shards and indexes of interrupted runs, which no commit record names. Files with other names stay."""
    for key in list(store.keys("shards/")):
        if key not in claimed and re.fullmatch(r"shards/\d{6,}-\d{3,}\.tar", key):
            store.delete(key)
    indexes: dict[int, list[str]] = {}
    for key in store.keys("units/"):
        if match := INDEX_NAME.fullmatch(key):
            indexes.setdefault(int(match[1]), []).append(key)
    for unit, keys in indexes.items():
        if len(keys) > 1:  # the unit was written anew: its record names the valid index
            named = read_record(store, unit).index.name
            for key in keys:
                if key != named:
                    store.delete(key)
    for folder in ("shards", "units", "plan", ""):
        store.remove_leftovers(folder)
