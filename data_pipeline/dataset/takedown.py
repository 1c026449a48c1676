"""Removes sources from a complete dataset, on demand.

A takedown writes the shards with clips of these sources anew: it copies the other samples byte for byte, and decodes
nothing.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.fields import Fields, canonical_json, read_object
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.index import IndexRow
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.rewrite import rewrite_unit
from data_pipeline.dataset.row_fates import TAKEN_DOWN, RowFate
from data_pipeline.dataset.units import ordered_units, require_complete
from data_pipeline.store.base import Store

TAKEDOWN_KEY = "takedown.json"
"""Key of the list of ids that were taken down: `{"ids": [...]}`."""


def taken_down(store: Store) -> frozenset[str]:
    """Ids of the sources that were taken down. A unit that is built again leaves them out.

    Raises: ValueError when the list is damaged.
    """
    try:
        raw = store.read(TAKEDOWN_KEY)
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(read_object(raw, _ids))
    except ValueError as error:
        raise ValueError(
            f"{store.uri(TAKEDOWN_KEY)} is damaged: {error}; restore it from a copy: it lists the sources that must "
            "not come back"
        ) from error


def _ids(fields: Fields) -> list[str]:
    return fields.texts("ids")


def take_down(dataset: Dataset, ids: set[str], scratch: str | None = None) -> DatasetFile:
    """Remove every clip of some sources from a complete dataset and return its new description.

    The list of ids is written first, so that the sources stay out even when the takedown is interrupted. The same call
    completes an interrupted takedown. Captions and names of the rows stay in the plan, which training does not read.

    Args:
        ids: ids of the source rows.
        scratch: folder for temporary files; None takes the system's.
    Raises:
        ValueError: no source has one of the ids, or units are missing.
    """
    require_complete(dataset)
    store = dataset.store
    found: set[str] = set()
    deciding: dict[int, int] = {}  # row -> the unit that decides its fate: a retry comes after the first try
    for unit in ordered_units(dataset):
        for fate in unit.record.rows:
            if fate.id in ids:  # where duplicates were merged, several rows have the id, and one of them the clips
                found.add(fate.id)
                deciding[fate.row] = unit.unit
    if unknown := sorted(ids - found):
        raise ValueError(f"{len(unknown)} ids are of no source of {store.uri()}: {', '.join(map(repr, unknown[:20]))}")
    store.write(TAKEDOWN_KEY, canonical_json({"ids": sorted(ids | taken_down(store))}))
    withdraw(store)
    concerned: dict[int, set[int]] = {}  # unit -> its rows that are to be removed
    for row, number in deciding.items():
        concerned.setdefault(number, set()).add(row)
    for unit in ordered_units(dataset, sorted(concerned)):
        removed = concerned[unit.unit]
        if all(fate.reason == TAKEN_DOWN for fate in unit.record.rows if fate.row in removed):
            continue
        rows = [RowFate.rejected(fate, TAKEN_DOWN, {}) if fate.row in removed else fate for fate in unit.record.rows]
        with tempfile.TemporaryDirectory(prefix="vidtwin-takedown-", dir=scratch) as folder:
            rewrite_unit(store, unit, partial(_is_of_one_of, removed), rows, Path(folder))
    return finalize(dataset, scratch)


def _is_of_one_of(rows: set[int], sample: IndexRow) -> bool:
    return sample.row in rows
