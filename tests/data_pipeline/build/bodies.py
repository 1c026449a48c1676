"""Bodies for the driver that have nothing to do with clips. They are kept apart so that a worker imports little.

Each begin of a unit leaves a line in the job's folder, and each end a file, which is the unit's result.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Units that write their number."""

    folder: str
    killed_once: frozenset[int] = frozenset()  # units that take their process down, the first time
    killed_always: frozenset[int] = frozenset()
    failing_once: frozenset[int] = frozenset()
    failing_always: frozenset[int] = frozenset()
    interrupting: int = 0  # a process that gets SIGINT from each unit; 0 for none
    unusable: bool = False  # whether the body cannot be made
    together: int = 0  # processes that must have begun a unit before a unit is done


@dataclass
class Report:
    """A unit has two rows and one item."""

    rows: int = 2
    items: int = 1
    bytes: int = 10
    fates: Counter[str] = field(default_factory=lambda: Counter({"kept": 1, "left": 1}))


def begins(folder: Path) -> list[tuple[int, int, str]]:
    """(unit, process, GPUs) of every begin, in order."""
    lines = [line.split(",", 2) for line in (folder / "begins").read_text().splitlines()]
    return [(int(unit), int(process), gpus) for unit, process, gpus in lines]


def results(folder: Path) -> list[int]:
    """The units that have a result."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*"))


def function(job: Job, unit: int) -> Report:
    """A unit as a task."""
    folder = Path(job.folder)
    first = not (folder / "begins").exists() or unit not in [begun for begun, *_ in begins(folder)]
    with (folder / "begins").open("a") as file:  # one write of few bytes, which cannot mix with another process's
        file.write(f"{unit},{os.getpid()},{os.environ.get('CUDA_VISIBLE_DEVICES', '')}\n")
    if job.interrupting:
        os.kill(job.interrupting, signal.SIGINT)
        time.sleep(600)
    if unit in job.killed_always or (first and unit in job.killed_once):
        os.kill(os.getpid(), signal.SIGKILL)
    if unit in job.failing_always or (first and unit in job.failing_once):
        raise OSError(f"no route to the store from unit {unit}")
    deadline = time.monotonic() + 60
    while len({process for _, process, _ in begins(folder)}) < job.together:
        assert time.monotonic() < deadline, "the other process does not come"
        time.sleep(0.05)
    (folder / str(unit)).write_text(str(unit))
    return Report()


class WithState:
    """The same, in an actor that takes a note of each instance."""

    def __init__(self, job: Job) -> None:
        if job.unusable:
            raise FileNotFoundError("model.safetensors is missing")
        self._job = job
        with (Path(job.folder) / "instances").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def run(self, unit: int) -> Report:
        """One unit."""
        return function(self._job, unit)
