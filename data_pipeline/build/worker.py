"""What runs beside the data: one process that builds units, keeping its stores and its decoder from unit to unit."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.unit import Cutter, UnitReport, build_unit
from data_pipeline.dataset.plan import Dataset, Plan, PlanRows
from data_pipeline.source.fetch import Sources
from data_pipeline.store.open import open_store

_PREFIX = "vidtwin-unit-"
_LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """All a worker needs to know. Holds no credentials: those are the machine's own."""

    config: ShardsConfig
    plan: Plan
    base: str  # what relative videos belong to
    taken_down: frozenset[str] = frozenset()  # ids that must not come back


class Worker:
    """Builds units of one job."""

    def __init__(self, job: Job, cut: Cutter | None = None) -> None:
        config = job.config
        self.job = job
        self._dataset = Dataset(open_store(config.output, config.sources.retries), job.plan)
        self._rows = PlanRows(self._dataset)
        self._sources = Sources(job.base, config.sources)
        self._cut = cut or _isolated(config)

    def run(self, unit: int) -> UnitReport:
        """Build and commit one unit. Raises: as `build_unit`."""
        with scratch_folder(self.job.config.run.scratch) as scratch:
            return build_unit(
                self._dataset,
                unit,
                self._rows.unit(unit),
                self.job.config,
                cut=self._cut,
                sources=self._sources,
                scratch=scratch,
                taken_down=self.job.taken_down,
            )


def _isolated(config: ShardsConfig) -> Cutter:
    from data_pipeline.cut.isolate import IsolatedCutter

    run = config.run
    return IsolatedCutter(config.clip, timeout_s=run.cut_timeout_s, memory_bytes=run.cut_memory_bytes).cut


_worker: Worker | None = None


def run_unit(job: Job, unit: int) -> UnitReport:
    """Build one unit in this process, with the worker of the call before when the job is the same."""
    global _worker
    if _worker is None or _worker.job != job:
        _worker = Worker(job)
    return _worker.run(unit)


@contextmanager
def scratch_folder(parent: str) -> Iterator[Path]:
    """An empty folder for one unit, and the removal of those whose process was killed.

    A living process holds a lock on its folder, which also works for processes that cannot see each other's ids.
    """
    root = Path(parent or tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{_PREFIX}*"):
        _remove_if_abandoned(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        try:
            with (folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not os.fstat(lock.fileno()).st_nlink:
                    continue  # removed by another process before it was locked
                yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # in use, not ours, or its owner has not come to lock it yet
