"""A unit body that makes up clips instead of cutting videos, and commits them as the real one does.

It reads the unit's rows from the plan, and writes a shard, the sample index and the commit record through
`unit.commit_unit`. Of each hundred rows 93 give a clip, 4 are rejected and 3 quarantined: sizes and fates follow from
the row's number alone, so every run writes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from data_pipeline.build.packing import sample_key
from data_pipeline.build.unit import UnitReport
from data_pipeline.build.worker import BuildJob
from data_pipeline.dataset.index import IndexRow
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRow, PlanRows
from data_pipeline.dataset.records import ShardEntry
from data_pipeline.dataset.row_fates import COMMITTED, QUARANTINED, REJECTED, RowFate
from data_pipeline.dataset.units import commit_unit, shard_key
from data_pipeline.source.row_rules import split_of
from data_pipeline.store.open import open_store

ENCODER = "no encoder: clips of the scale test are made up"
_SHARD = bytes(1024)  # an archive without members; 35 GB of made-up tars would test the disk
_SHARD_SHA256 = hashlib.sha256(_SHARD).hexdigest()
_SAMPLE_BYTES = 300_032


class _Worker:
    """The store and the part of the plan that this process keeps from unit to unit."""

    def __init__(self, job: BuildJob) -> None:
        self.job = job
        self.dataset = Dataset(open_store(job.config.output), job.plan)
        self.rows = PlanRows(self.dataset)


_worker: _Worker | None = None


def expected_fates(rows: int) -> Counter[str]:
    """How many of the rows 1..`rows` end how: what the ledger of the whole must say."""
    whole, rest = divmod(rows, 100)
    fates = Counter({fate: whole * sum(_fate(number) == fate for number in range(100)) for fate in _FATES})
    fates.update(_fate(number) for number in range(1, rest + 1))
    return fates


_FATES = (COMMITTED, REJECTED, QUARANTINED)


def _fate(row: int) -> str:
    number = row % 100
    return REJECTED if number < 4 else QUARANTINED if number < 7 else COMMITTED


def run_unit(job: BuildJob, unit: int) -> UnitReport:
    """Commit one unit of made-up clips."""
    global _worker
    if _worker is None or _worker.job != job:
        _worker = _Worker(job)
    dataset, rows = _worker.dataset, _worker.rows.unit(unit)
    samples: list[IndexRow] = []
    fates = []
    for row in rows:
        fate = _fate(row.row)
        if fate == COMMITTED:
            samples.append(_sample(row, len(samples), split_of(row.video, row.split, job.config.split)))
            fates.append(RowFate.committed(row, 1))
        elif fate == REJECTED:
            fates.append(RowFate.rejected(row, "too_short", {"seconds": 1.25}))
        else:
            fates.append(RowFate.quarantined(row, "missing", "there is no such object"))
    splits = Counter(sample.split for sample in samples)
    shard = ShardEntry(
        name=shard_key(unit, 0), bytes=len(_SHARD), sha256=_SHARD_SHA256, samples=len(samples), splits=dict(splits)
    )
    dataset.store.write(shard.name, _SHARD)
    commit_unit(dataset, unit, shards=[shard], samples=samples, fates=fates)
    counts = Counter(fate.fate for fate in fates)
    return UnitReport(unit, len(rows), items=len(samples), bytes=len(_SHARD), fates=counts)


def _sample(row: PlanRow, position: int, split: str) -> IndexRow:
    """An index entry as `Packer.add` makes it."""
    offset = position * _SAMPLE_BYTES
    return IndexRow(
        key=sample_key(row.id, 0),
        shard=0,
        offset=offset,
        size=_SAMPLE_BYTES,
        video_offset=offset + 2048,
        video_size=_SAMPLE_BYTES - 4096,
        frames=80,
        height=256,
        width=256,
        split=split,
        source=row.id,
        label=row.label,
        crc32=row.row % 2**32,
        row=row.row,
        clip=0,
        start=0.0,
        end=10.0,
        phash=row.row * 0x9E3779B97F4A7C15 % 2**64,
    )
