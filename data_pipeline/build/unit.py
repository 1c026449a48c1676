"""Builds one work unit: it makes shards, a sample index and, last of all, a commit record of some source rows.

The plan and the sources alone decide the result, so every run of `build_unit` writes the same bytes. A unit exists when
its commit record does. What an interrupted run left is overwritten with the same bytes, or removed by `finalize`.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.packing import Packer, rounded
from data_pipeline.build.prefetch import Prefetcher, video_runs
from data_pipeline.build.refusal import refusal
from data_pipeline.build.scratch import ScratchRoom
from data_pipeline.cut.result import CutResult, EncodedClip, Rejection
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.dataset.ledger import row_reason
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import RejectedStretch, RowFate
from data_pipeline.dataset.units import commit_unit
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.row_rules import split_of
from data_pipeline.source.trouble import MACHINE_ERRORS, MachineTrouble
from data_pipeline.store.base import StoreError

_Source = Path | SourceProblem | Rejection


class Cutter(Protocol):
    """Cuts one local file: `data_pipeline.cut.isolate.IsolatedCutter.cut`, or a stand-in for tests."""

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
    dataset: Dataset,
    unit: int,
    rows: list[PlanRow],
    config: ShardsConfig,
    *,
    cut: Cutter,
    sources: Sources,
    scratch: Path,
    taken_down: frozenset[str] = frozenset(),
) -> UnitReport:
    """Build and commit one unit.

    Args:
        rows: the unit's rows in the plan's order.
        cut: the clip cutter.
        scratch: an empty local folder, which the caller may remove afterwards.
        taken_down: ids of rows that must not come back into the dataset.
    Raises:
        MachineTrouble: this machine has no credentials, mount, disk or network now; another one may build the unit.
        OSError: the store or the disk failed. The unit is not committed and may be built again.
        UnitConflict: another run committed this unit with other bytes. Its record is removed; build the unit again.
    """
    packer = Packer(unit, config.shard_bytes, dataset.store, scratch)
    fates: list[RowFate] = []
    report = UnitReport(unit, len(rows))
    refusal_of = partial(refusal, config, taken_down)
    runs = video_runs(rows, lambda row: refusal_of(row) is not None)
    prefetcher = Prefetcher(sources, scratch, config.run.downloads, ScratchRoom(scratch, config.run.scratch_bytes))
    with closing(prefetcher.fetched(runs)) as videos:
        for run, video in videos:
            if isinstance(video, OSError):
                assert run.needs is not None
                raise _named(run.needs, video) from video
            for row in run.rows:
                source = refusal_of(row) or video
                assert source is not None, row
                fate = _build_row(row, source, config, dataset.plan.encoder, cut, packer, sources)
                fates.append(fate)
                report.items += fate.clips
                report.fates[fate.fate] += 1
            if isinstance(video, Path) and video.parent == scratch:
                video.unlink(missing_ok=True)
    packer.close()
    commit_unit(dataset, unit, shards=packer.shards, samples=packer.samples, fates=fates)
    report.bytes = sum(shard.bytes for shard in packer.shards)
    return report


def _named(row: PlanRow, error: OSError) -> OSError:
    """The error with the row and the video it was met at."""
    words = f"row {row.row}, video {row.video!r}: {error}"
    if isinstance(error, MachineTrouble) or error.errno in MACHINE_ERRORS:
        return MachineTrouble(words)
    return StoreError(words)


def _build_row(
    row: PlanRow,
    source: _Source,
    config: ShardsConfig,
    encoder: str,
    cut: Cutter,
    packer: Packer,
    sources: Sources,
) -> RowFate:
    """Cut and pack one row and return its entry in the commit record."""
    if isinstance(source, Rejection):
        return RowFate.rejected(row, source.reason, source.measured)
    if isinstance(source, SourceProblem):
        return RowFate.quarantined(row, source.error, source.detail)
    try:
        result = cut(source, start=row.start, end=row.end)
    except UndecodableVideo as error:
        try:
            sources.check_machine(row.video, source, str(error))
        except SourceProblem as problem:
            return RowFate.quarantined(row, problem.error, problem.detail)
        except OSError as trouble:
            raise _named(row, trouble) from trouble
        detail = str(error).replace(str(source), row.video)
        if source.name != Path(row.video).name:  # a download has a random name, which differs from run to run
            detail = detail.replace(source.name, row.video)
        return RowFate.quarantined(row, error.cause, detail[:1000])
    split = split_of(row.video, row.split, config.split)
    for clip in result.clips:
        packer.add(clip, row, split, _description(clip, row, split, config, encoder, result.source))
    stretches = [_rejected_stretch(item) for item in result.rejected]
    if result.clips:
        return RowFate.committed(row, len(result.clips), stretches)
    if not stretches:
        return RowFate.quarantined(row, "undecodable", "no picture was found in the file")
    return RowFate.rejected_in_parts(row, row_reason(item.reason for item in stretches), stretches)


def _rejected_stretch(item: Rejection) -> RejectedStretch:
    return RejectedStretch(
        clip=item.number,
        start=round(item.start, 6),
        end=round(item.end, 6),
        reason=item.reason,
        measured=rounded(item.measured),
    )


def _description(
    clip: EncodedClip, row: PlanRow, split: str, config: ShardsConfig, encoder: str, source: dict[str, Any]
) -> dict[str, Any]:
    """The content of a sample's `<key>.json`: its source, its times and what the gates measured."""
    description = {
        "id": row.id,
        "video": row.video,
        "row": row.row,
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
        "label": row.label,
        "split": split,
        "source": rounded(source),
        "encoder": encoder,
    }
    if row.extra:
        description["extra"] = json.loads(row.extra)
    return description
