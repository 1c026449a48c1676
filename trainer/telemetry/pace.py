"""How fast a run is: clips and tokens a second, the share of waiting for data, the use of the device, the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.method import B, Facts
from trainer.telemetry.gpu_peaks import known_device, peak


@dataclass(frozen=True)
class Lap:
    """What one rank has done from one log step to the next.

    Attributes:
        steps: at least 1.
        seconds: without those of `Pace.aside`.
        lengths: sum over the steps of `Method.length`, the length of the samples as a share of the full length.
    """

    steps: int
    seconds: float
    lengths: float


class Pace:
    """Times a run on one rank.

    Attributes:
        waited: seconds since the last log step in which the run waited for batches.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.begin(0)

    def begin(self, step: int) -> None:
        """Begin after `step`, at the start or after a rollback; nothing before it counts."""
        self.waited, self._lengths = 0.0, 0.0
        self._since = self._start = time.monotonic()
        self._since_step = self._start_step = step

    def waiting(self, batches: Iterator[B], length: Callable[[B], float]) -> Iterator[B]:
        """Pass the batches on, and measure how long the run waits for each; `length` is `Method.length`."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - before
            self._lengths += length(batch)
            yield batch

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Context whose time does not count for clips/s."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def lap(self, step: int) -> Lap:
        """End a lap with the log step `step`, and begin the next one."""
        now = time.monotonic()
        lap = Lap(max(1, step - self._since_step), max(1e-9, now - self._since), self._lengths)
        self._since, self._since_step, self.waited, self._lengths = now, step, 0.0, 0.0
        return lap

    def rates(self, lap: Lap, facts: Facts, *, waited: float) -> dict[str, float]:
        """The terms of a log step that say how fast the run is, all ranks together.

        Args:
            waited: seconds of the lap in which the slowest rank waited for batches.
        Returns:
            `clips_per_s`, `tokens_per_s`, `step_seconds`, and `data_wait` as a share of the lap; `mfu`, model FLOPs
            utilisation as a share of the devices' peak, where the peak is known.
        """
        samples = lap.steps * facts.samples_per_step / lap.seconds
        whole = samples * lap.lengths / lap.steps  # in samples of full length
        rates = {
            "clips_per_s": samples,
            "tokens_per_s": whole * facts.tokens_per_sample,
            "step_seconds": lap.seconds / lap.steps,
            "data_wait": waited / lap.seconds,
        }
        most = self.config.telemetry.peak_flops or self._known_peak()
        if most:
            rates["mfu"] = whole * facts.flops_per_sample / (most * self.ranks.world_size)
        return rates

    def left(self, step: int) -> str:
        """The time that the steps after `step` will take at the pace since the start: "4:10:00" or "0:15"."""
        seconds = (time.monotonic() - self._start) / max(1, step - self._start_step) * (self.config.steps - step)
        minutes, second = divmod(round(seconds), 60)
        hours, minute = divmod(minutes, 60)
        return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

    def _known_peak(self) -> float:
        on_gpu = self.ranks.device.type == "cuda"
        device = known_device(torch.cuda.get_device_name(self.ranks.device)) if on_gpu else None
        return peak(self.config, device) if device is not None else 0.0
