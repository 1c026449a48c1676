"""One work unit: source rows in, shards, a sample index and, last of all, a commit record out.

`build_unit` is a pure function of the plan and the sources: whoever runs it, however often, writes the same bytes. A
unit exists when its record does; whatever a killed attempt left is overwritten with the same bytes or swept at the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.packing import Packer, rounded
from data_pipeline.cut.result import CutResult, EncodedClip, Rejection
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.dataset.ledger import COMMITTED, QUARANTINED, REJECTED, TAKEN_DOWN, row_fate, row_reason
from data_pipeline.dataset.plan import Plan
from data_pipeline.dataset.units import Row, commit_unit
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.row_rules import caption_problem, split_of
from data_pipeline.store.base import Store

_Source = Path | SourceProblem | Rejection


class Cutter(Protocol):
    """Cuts one local file; `data_pipeline.cut.isolate.IsolatedCutter.cut` or, in tests, anything alike."""

    def __call__(self, path: Path, *, start: float | None = None, end: float | None = None) -> CutResult:
        """Raises: UndecodableVideo."""


@dataclass
class UnitReport:
    """The driver's `Report` about a finished unit: a few numbers, no clips."""

    unit: int
    rows: int
    items: int = 0  # clips
    bytes: int = 0
    fates: Counter[str] = field(default_factory=Counter)


def build_unit(
    plan: Plan,
    unit: int,
    rows: list[Row],
    config: ShardsConfig,
    *,
    cut: Cutter,
    sources: Sources,
    store: Store,
    scratch: Path,
    taken_down: frozenset[str] = frozenset(),
) -> UnitReport:
    """Build and commit one unit.

    Args:
        rows: the unit's rows, of PLAN_SCHEMA.
        cut: the clip cutter.
        scratch: an empty local folder; its contents may be thrown away afterwards.
        taken_down: ids of rows that must not be in the dataset any more.
    Raises:
        OSError: the store or the disk failed; the unit is not committed and may be tried again.
        UnitConflict: another run committed this unit with other bytes; the record is withdrawn, try again.
    """
    packer = Packer(unit, config.shard_bytes, store, scratch)
    fates = []
    report = UnitReport(unit, len(rows))
    for row, source in _prefetched(rows, partial(_source, config, sources, scratch, taken_down)):
        fate = _build_row(row, source, config, plan.encoder, cut, packer)
        if isinstance(source, Path) and source.parent == scratch:
            source.unlink(missing_ok=True)
        fates.append(fate)
        report.items += fate.get("clips", 0)
        report.fates[fate["fate"]] += 1
    packer.close()
    commit_unit(plan, unit, store, shards=packer.shards, samples=packer.samples, fates=fates)
    report.bytes = sum(shard["bytes"] for shard in packer.shards)
    return report


def _prefetched(rows: list[Row], source_of: Callable[[Row], _Source]) -> Iterator[tuple[Row, _Source]]:
    """Each row with its local file, or why there is none; the next source is fetched while this one is cut."""
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        upcoming: Future[_Source] = pool.submit(source_of, rows[0])
        for position, row in enumerate(rows):
            source = upcoming.result()
            if position + 1 < len(rows):
                upcoming = pool.submit(source_of, rows[position + 1])
            yield row, source


def _source(config: ShardsConfig, sources: Sources, folder: Path, taken_down: frozenset[str], row: Row) -> _Source:
    if row["id"] in taken_down:
        return _row_rejection(TAKEN_DOWN, {})
    if row["duplicate_of"] is not None:
        return _row_rejection("duplicate_id", {"first_row": row["duplicate_of"]})
    if refusal := caption_problem(row["caption"], config.caption):
        return _row_rejection(*refusal)
    try:
        return sources.fetch(row["video"], folder)
    except SourceProblem as problem:
        return problem


def _row_rejection(reason: str, measured: dict[str, float | str]) -> Rejection:
    return Rejection(number=None, start=0.0, end=0.0, reason=reason, measured=measured)


def _build_row(
    row: Row, source: _Source, config: ShardsConfig, encoder: str, cut: Cutter, packer: Packer
) -> dict[str, Any]:
    """Cut and pack one row; returns its entry in the commit record."""
    if isinstance(source, Rejection):
        return row_fate(row, fate=REJECTED, reason=source.reason, measured=source.measured)
    if isinstance(source, SourceProblem):
        return row_fate(row, fate=QUARANTINED, error=source.error, detail=source.detail)
    try:
        result = cut(source, start=row["start"], end=row["end"])
    except UndecodableVideo as error:
        detail = str(error).replace(str(source), row["video"])
        if source.name != Path(row["video"]).name:  # the random name of a download: another one in each run
            detail = detail.replace(source.name, row["video"])
        return row_fate(row, fate=QUARANTINED, error=error.cause, detail=detail[:1000])
    split = split_of(row["video"], row["split"], config.split)
    for clip in result.clips:
        packer.add(clip, row, split, _description(clip, row, split, config, encoder, result.source))
    rejected = [_rejection(item) for item in result.rejected]
    if result.clips:
        return row_fate(row, fate=COMMITTED, clips=len(result.clips), rejected=rejected)
    if not rejected:
        return row_fate(row, fate=QUARANTINED, error="undecodable", detail="no picture was found in the file")
    return row_fate(row, fate=REJECTED, reason=row_reason(item["reason"] for item in rejected), rejected=rejected)


def _rejection(item: Rejection) -> dict[str, Any]:
    return {
        "clip": item.number,
        "start": round(item.start, 6),
        "end": round(item.end, 6),
        "reason": item.reason,
        "measured": rounded(item.measured),
    }


def _description(
    clip: EncodedClip, row: Row, split: str, config: ShardsConfig, encoder: str, source: dict[str, Any]
) -> dict[str, Any]:
    """The `<key>.json` of a sample: where it comes from and what it is."""
    description = {
        "id": row["id"],
        "video": row["video"],
        "row": row["row"],
        "clip": clip.number,
        "start": round(clip.start, 6),
        "end": round(clip.end, 6),
        "fps": config.clip.fps,
        "frames": clip.frames,
        "height": clip.height,
        "width": clip.width,
        "fps_error": round(clip.fps_error, 6),
        "measures": rounded(clip.measures),
        "phash": clip.phash,
        "label": row["label"],
        "split": split,
        "source": rounded(source),
        "encoder": encoder,
    }
    if row["extra"]:
        description["extra"] = json.loads(row["extra"])
    return description
