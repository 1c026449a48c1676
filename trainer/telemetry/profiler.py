"""A few steps under torch.profiler, once in a run: what the processor, the GPU and the collectives did when.

Each rank writes OUTPUT/profile/rank-00000.<time>.pt.trace.json, which ui.perfetto.dev and chrome://tracing open, and
`tensorboard --logdir OUTPUT/profile` with the torch-tb-profiler plugin. Outside the window nothing is installed.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities, tensorboard_trace_handler

from trainer.config.running import ProfileConfig


class ProfileWindow:
    """Context that traces the window; `before` is called at the beginning of every step."""

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
        """Step number `step` begins, counted from 1: perhaps open the window, go on in it, or close it."""
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
                # What the first step of a profiler measures is mostly the profiler, so that step is thrown away.
                schedule=schedule(wait=0, warmup=1, active=config.steps, repeat=1),
                on_trace_ready=tensorboard_trace_handler(str(self.directory), f"rank-{self.rank:05d}"),
                record_shapes=True,
                profile_memory=torch.cuda.is_available(),  # on the CPU it complains of blocks it has not seen
            )
            self._profile.start()
            if step == config.at:  # the run begins here: what is thrown away is an empty step
                self._profile.step()

    def _finish(self) -> None:
        self._profile.stop()
        self._profile = None
