"""The end of the time that a start of a run may take: early enough that the last step is saved before it.

A scheduler ends a job at its limit, whatever the job does then. So a run with `max_hours` stops by itself before that:
by the longest step that this start has seen, and by the time of a save.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from trainer.config.run import RunConfig

UNMEASURED_SHARE = 0.1
"""Share of the limit that is kept for saving before the first save of this start has been measured."""


class TimeLimit:
    """How long this start may still train. Every rank has its own; where one is near, all ranks stop.

    Attributes:
        text: the setting, for messages.

    Args:
        config: the run.
        clock: seconds, from any beginning; the limit counts from this call on.
    """

    def __init__(self, config: RunConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = f"max_hours={config.max_hours:g}"
        self._clock, self._begin, self._seconds = clock, clock(), 3600 * config.max_hours
        self._steps, self._longest_step = 0, 0.0
        most = 60 * config.watchdog.pause_budget or math.inf  # 0, without a watchdog, says nothing of a save
        self._unmeasured = min(UNMEASURED_SHARE * self._seconds, most)
        self._longest_save: float | None = None
        # The last save waits for the one before it, where that is still on its way from memory to the disk.
        self._saves = 2 if config.checkpoint.staging else 1
        self._upload = config.checkpoint.upload_wait_stopped if config.checkpoint.upload else 0.0

    @property
    def reserve(self) -> float:
        """Seconds before the limit at which no further step begins."""
        saving = self._unmeasured if self._longest_save is None else self._saves * self._longest_save
        return self._longest_step + saving + self._upload

    def near(self) -> bool:
        """Whether one more step might not be saved in time; never without a limit."""
        return self._seconds > 0 and self._clock() - self._begin + self.reserve >= self._seconds

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Context of one step, whose time counts. The first step warms up, so it counts only until the second ends."""
        begin = self._clock()
        yield
        self._steps += 1
        self._longest_step = max(self._longest_step if self._steps > 2 else 0.0, self._clock() - begin)

    def saved(self, seconds: float) -> None:
        """Note that a save has taken so long, from its begin until the checkpoint was complete."""
        self._longest_save = max(self._longest_save or 0.0, seconds)
