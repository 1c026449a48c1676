"""Counts the fetches that the order of the rows and the length of the units cost beyond one for each video."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.build.hashes import HashFiles
from data_pipeline.dataset.plan import PlanRow

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
    cuts: Iterable[int],
    needs_video: Callable[[PlanRow], bool],
    copied: Callable[[str], bool],
    folder: Path,
) -> FurtherFetches:
    """Count as the units will fetch: once for the adjacent rows of a video in a unit, where one of them needs it.

    Memory stays bounded for any number of rows.

    Args:
        batches: the rows of one manifest, with the columns of a plan.
        cuts: positions of the rows that begin a unit, without the first unit's, ascending.
        needs_video: whether a row is refused only after a look at its video, or not at all.
        copied: whether a video lies elsewhere, so that a fetch makes a copy.
        folder: for files, which the caller removes.
    """
    hashes = HashFiles(folder, "needed-videos")
    needed_runs: list[int] = []
    boundaries = chain(cuts, repeat(-1))
    cut, within = next(boundaries), 0
    for video, run in groupby(enumerate(_rows(batches)), key=lambda numbered: numbered[1].video):
        units = 0  # that need this run of rows
        needed = False
        for position, row in run:
            if position == cut:
                cut, units, needed = next(boundaries), units + needed, False
            needed = needed or needs_video(row)
        units += needed
        within += max(0, units - 1)
        if units and copied(video):
            needed_runs.append(hash(video))
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


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterable[PlanRow]:
    for batch in batches:
        names = [name for name in batch.schema.names if name in PlanRow.__dataclass_fields__]
        for row in batch.select(names).to_pylist():
            yield PlanRow(**row)
