"""Fetches the next videos of a unit while one is cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data_pipeline.build.scratch import ScratchRoom
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.source.fetch import SourceProblem, Sources


@dataclass(frozen=True)
class VideoRun:
    """Adjacent rows of one video, which share one fetch."""

    rows: list[PlanRow]
    needs: PlanRow | None  # the first row that needs the video; None where all rows are refused without it


Fetched = Path | SourceProblem | OSError | None
"""A local file, the reason why there is none, what failed on this machine; None: the video was not needed."""


def video_runs(rows: list[PlanRow], refused: Callable[[PlanRow], bool]) -> list[VideoRun]:
    """The runs of adjacent rows with the same video, in order.

    Args:
        refused: whether a row is refused without a look at its video.
    """
    runs = [list(run) for _, run in groupby(rows, key=lambda row: row.video)]
    return [VideoRun(run, next((row for row in run if not refused(row)), None)) for run in runs]


class Prefetcher:
    """The videos of runs, in order. While one is in work, the next ones are fetched as far as there is room for them.

    Args:
        folder: for downloads, of this unit alone.
        downloads: at most so many at once; 0 fetches each video when it is needed.
        room: says how large a download may be that is not needed yet. A larger one is fetched when it is needed.
    """

    def __init__(self, sources: Sources, folder: Path, downloads: int, room: ScratchRoom) -> None:
        self._sources, self._folder, self._downloads, self._room = sources, folder, downloads, room

    def fetched(self, runs: list[VideoRun]) -> Generator[tuple[VideoRun, Fetched]]:
        """The runs in order, each with its video. The caller closes the iterator, which ends the downloads in work.

        What a download ahead has met is told with its own run, not earlier.
        """
        if not self._downloads:
            yield from ((run, self._now(run)) for run in runs)
            return
        pool = ThreadPoolExecutor(self._downloads, thread_name_prefix="fetch")
        upcoming: deque[Future[Fetched] | None] = deque()
        try:
            for position, run in enumerate(runs):
                while len(upcoming) <= self._downloads and position + len(upcoming) < len(runs):
                    upcoming.append(self._begun(pool, runs[position + len(upcoming)]))
                ahead = upcoming.popleft()
                found = None if ahead is None else ahead.result()
                yield run, self._now(run) if found is None else found
        finally:
            pool.shutdown(cancel_futures=True)

    def _begun(self, pool: ThreadPoolExecutor, run: VideoRun) -> Future[Fetched] | None:
        """A download ahead of its turn; None where the run needs none, because its video is a file of this machine."""
        if run.needs is None or not self._sources.copies(run.needs.video):
            return None
        return pool.submit(self._ahead, run.needs.video)

    def _ahead(self, video: str) -> Fetched:
        """The video, or None where there is no room for it before its turn."""
        with self._room.ahead() as most:
            if not most:
                return None
            most = min(most, self._sources.config.max_bytes)
            found = self._fetch(video, most)
        too_large = isinstance(found, SourceProblem) and found.error == "too_large"
        return None if too_large and most < self._sources.config.max_bytes else found

    def _now(self, run: VideoRun) -> Fetched:
        return None if run.needs is None else self._fetch(run.needs.video)

    def _fetch(self, video: str, most: int | None = None) -> Fetched:
        try:
            return self._sources.fetch(video, self._folder, most)
        except (SourceProblem, OSError) as error:
            return error
