"""Builds units in a worker process, which keeps its store, its sources and its decoder from unit to unit."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.scratch import scratch_folder
from data_pipeline.build.unit import Cutter, UnitReport, build_unit
from data_pipeline.build.unit_body import GivenBack
from data_pipeline.cut.isolate import IsolatedCutter
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.source.fetch import Sources
from data_pipeline.source.trouble import MachineTrouble
from data_pipeline.store.base import pause
from data_pipeline.store.open import open_store

_LONGEST_PAUSE = 7
"""Give-backs in a row after which the pause before the next one no longer grows (some 10 seconds, see `pause`)."""


@dataclass(frozen=True)
class BuildJob:
    """All that a worker needs to know. It holds no credentials: each machine has its own."""

    config: ShardsConfig
    plan: Plan
    base: str  # folder or address that relative videos belong to
    taken_down: frozenset[str] = frozenset()  # ids of rows that must not come back
    folders: tuple[str, ...] = ()  # those of each machine that the sources lie in


class Worker:
    """Builds units of one job.

    Args:
        cut: the clip cutter; None takes the real one, in a process of its own.
    """

    def __init__(self, job: BuildJob, cut: Cutter | None = None) -> None:
        config = job.config
        self.job = job
        self._dataset = Dataset(open_store(config.output, config.sources.retries), job.plan)
        self._rows = PlanRows(self._dataset)
        self._sources = Sources(job.base, config.sources, job.folders)
        self._cut = cut or _isolated(config)
        self._troubles = 0  # units given back in a row

    def run(self, unit: int) -> UnitReport:
        """Build and commit one unit. Raises: GivenBack for trouble of this machine, else as `build_unit`.

        A machine in trouble waits a little longer each time before it gives a unit back, so that it does not take the
        units faster than the machines that work.
        """
        try:
            report = self._run(unit)
        except MachineTrouble as trouble:
            self._troubles += 1
            pause(min(self._troubles, _LONGEST_PAUSE))
            raise GivenBack(str(trouble)) from trouble
        self._troubles = 0
        return report

    def _run(self, unit: int) -> UnitReport:
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
    run = config.run
    return IsolatedCutter(config.clip, timeout_s=run.cut_timeout_s, memory_bytes=run.cut_memory_bytes).cut


_worker: Worker | None = None


def run_unit(job: BuildJob, unit: int) -> UnitReport:
    """Build one unit in this process, with the same worker as the call before when the job is the same.

    Raises: as `Worker.run`.
    """
    global _worker
    if _worker is None or _worker.job != job:
        _worker = Worker(job)
    return _worker.run(unit)
