"""Traces a few steps with torch.profiler, once in a run: what the CPU, the GPU and the collective calls did when.

Each rank writes OUTPUT/profile/rank-00000.<time>.pt.trace.json. Open it in ui.perfetto.dev, in chrome://tracing, or
with `tensorboard --logdir OUTPUT/profile` and the torch-tb-profiler plugin. Before and after these steps no profiler is
active.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities, tensorboard_trace_handler

from trainer.config.running import ProfileConfig


class ProfileWindow:
    """Context that traces the steps `profile.at` and following. `before` is called at the beginning of every step."""

    def __init__(self, config: ProfileConfig, directory: Path, rank: int) -> None:
        self.config, self.directory, self.rank = config, directory, rank
        self._profile: Any = None

    def __enter__(self) -> ProfileWindow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._finish()

    def before(self, step: int) -> None:
        """Begin, go on with or end the trace, because step number `step`, counted from 1, begins."""
        config = self.config
        if not config.at:
            return
        if self._profile is not None:
            self._profile.step()
            if step >= config.at + config.steps:
                self._finish()
        elif step in (config.at - 1, config.at):
            self._profile = profile(
                activities=supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA},
                # The first step of a profiler measures mostly the profiler itself, so its trace is thrown away.
                schedule=schedule(wait=0, warmup=1, active=config.steps, repeat=1),
                on_trace_ready=tensorboard_trace_handler(str(self.directory), f"rank-{self.rank:05d}"),
                record_shapes=True,
                profile_memory=torch.cuda.is_available(),  # on the CPU it warns of memory blocks that it did not see
            )
            self._profile.start()
            if step == config.at:  # the run begins with this step, so an empty step is thrown away instead
                self._profile.step()

    def _finish(self) -> None:
        self._profile.stop()
        self._profile = None
