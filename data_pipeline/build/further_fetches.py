"""Counts the fetches that the order of the rows and the length of the units cost beyond one for each video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.build.hashes import HashFiles, among, text_hashes
from data_pipeline.build.video_runs import VideoRuns
from data_pipeline.dataset.plan_rows import PlanRow

_BUFFERED = 1 << 16
"""Hashes that are written to the files at a time."""


@dataclass(frozen=True)
class FurtherFetches:
    """How often videos are fetched again.

    Args:
        videos: with needed rows that do not all stand beside each other. Files of this machine are none of them.
        apart: fetches that these videos take beyond the first one.
        within: units that begin within the rows of a video and read it again.
    """

    videos: int
    apart: int
    within: int


def further_fetches(
    batches: Iterable[pa.RecordBatch],
    runs: VideoRuns,
    cuts: tuple[int, ...],
    needs_video: Callable[[PlanRow], bool],
    folder: Path,
) -> FurtherFetches:
    """Count as the units will fetch: once for the adjacent rows of a video in a unit, where one of them needs it.

    Only the rows of videos that may be fetched twice are looked at.

    Args:
        batches: the rows of one manifest, with the columns of a plan.
        runs: of these rows.
        cuts: positions of the rows that begin a unit, without the first unit's, ascending.
        needs_video: whether a row is refused only after a look at its video, or not at all.
        folder: for files, which the caller removes.
    """
    begins = np.array(cuts, np.int64)
    hashes, within = HashFiles(folder, "needed-videos"), 0
    needed_runs: list[int] = []
    for _, run in groupby(_doubtful(batches, runs, begins), key=itemgetter(0)):
        units: set[int] = set()
        for _, unit, row in run:
            if unit not in units and needs_video(row):
                units.add(unit)
        within += max(0, len(units) - 1)
        if units and runs.copied(row.video):
            needed_runs.append(hash(row.video))
        if len(needed_runs) >= _BUFFERED:
            hashes.add(np.array(needed_runs, np.int64))
            needed_runs.clear()
    hashes.add(np.array(needed_runs, np.int64))
    hashes.close()
    videos = apart = 0
    for part in hashes.partitions():
        counts = np.unique(part, return_counts=True)[1]
        videos += int((counts > 1).sum())
        apart += int((counts - 1).sum())
    return FurtherFetches(videos, apart, within)


def _doubtful(
    batches: Iterable[pa.RecordBatch], runs: VideoRuns, begins: np.ndarray
) -> Iterator[tuple[int, int, PlanRow]]:
    """The rows of runs that a unit cuts, and of videos with several runs, with the numbers of their run and unit."""
    names = [field.name for field in fields(PlanRow)]
    starts, several = runs.starts, runs.several()
    cut_runs = np.searchsorted(starts, begins[~np.isin(begins, starts)], "right")
    first = 0
    for batch in batches:
        positions = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        numbers = np.searchsorted(starts, positions, "right")
        chosen = among(text_hashes(batch.column("video")), several) | among(numbers, cut_runs)
        rows = batch.select([name for name in batch.schema.names if name in names]).filter(pa.array(chosen))
        units = np.searchsorted(begins, positions[chosen], "right")
        for run, unit, row in zip(numbers[chosen].tolist(), units.tolist(), rows.to_pylist(), strict=True):
            yield run, unit, PlanRow(**row)
