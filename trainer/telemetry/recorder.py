"""What a run writes down: metrics.jsonl, TensorBoard, and lines for whoever is watching.

Terms stay on the device and are added up there; only a log step reads them, once, as one tensor averaged over ranks.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import Tensor

from trainer.config.loader import to_yaml
from trainer.config.run import RunConfig
from trainer.config.running import TelemetryConfig
from trainer.distributed import Ranks
from trainer.engine.gradient_watch import Gradients
from trainer.method import B, Facts
from trainer.telemetry.gif import gif_summary
from trainer.telemetry.gpu_peaks import known_device, peak
from trainer.telemetry.journal import Journal
from trainer.telemetry.nonfinite import NonFiniteRun, SkippedSteps, describe
from trainer.telemetry.running_means import Window

# TensorBoard's groups: which keys, by their beginning; all others are losses.
SECTIONS = {
    "schedule": ("lr_", "gan_", "frames"),
    "gan": ("disc_", "adversarial_", "adaptive_", "logits_", "lecam_"),
    "gradient": ("grad_norm", "skipped", "loss_scale"),
    "speed": ("clips_per_s", "tokens_per_s", "step_seconds", "data_wait", "mfu", "memory_gb"),
}


class Telemetry:
    """Records a run; `record` is called by every rank at every step, the main rank writes."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.settings: TelemetryConfig = config.telemetry
        self.output = Path(config.output)
        self.window = Window(ranks.device)
        self.suspects = SkippedSteps(self.output / "nonfinite.jsonl", ranks)
        self.journal = Journal(self.output / "metrics.jsonl")
        self.facts = Facts(samples_per_step=0, tokens_per_sample=0.0, flops_per_sample=0.0)
        self.waited = 0.0
        self.lengths = 0.0  # of the samples as a share of the full length, added up since the last log step
        self.since, self.since_step, self.start, self.start_step = 0.0, 0, 0.0, 0
        self.live = ranks.is_main and sys.stdout.isatty()
        self.writer: Any = None

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
        if self.writer is not None:
            self.writer.close()

    def begin(self, step: int, facts: Facts, resumed: Path | None) -> None:
        """Open the files; rows of steps after `step`, from a run that was cut off, are dropped from metrics.jsonl."""
        self.facts = facts
        if resumed is not None:
            self.say(f"going on after step {step}, from {resumed}")
        self._set_back(step)
        if self.writer is not None:
            self.writer.add_text("config", f"```yaml\n{to_yaml(self.config)}\n```", step)

    def rolled_back(self, step: int, text: str, row: dict[str, Any]) -> None:
        """The run was set back to `step`: so are the files, which then say why."""
        self._set_back(step)
        self.say(f"rolled back: {text}")
        if self.ranks.is_main:
            self.journal.write({"event": "rollback"} | row)
        if self.writer is not None:
            self.writer.add_text("rollback", text, step)
            self.writer.flush()

    def _set_back(self, step: int) -> None:
        self.since = self.start = time.monotonic()
        self.since_step = self.start_step = step
        self.waited, self.lengths = 0.0, 0.0
        self.window.clear()
        self.suspects.forget()
        if not self.ranks.is_main:
            return
        self.journal.set_back(step)
        self.suspects.set_back(step)
        if self.settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            if self.writer is not None:
                self.writer.close()
            self.writer = SummaryWriter(str(self.output / "tensorboard"), purge_step=step + 1)

    def waiting(self, batches: Iterator[B], length: Callable[[B], float]) -> Iterator[B]:
        """Pass batches on, and measure how long each was waited for; `length` is `Method.length`."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - before
            self.lengths += length(batch)
            yield batch

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside does not count for clips/s."""
        before = time.monotonic()
        yield
        self.since += time.monotonic() - before

    def record(
        self,
        step: int,
        terms: dict[str, Tensor],
        schedules: dict[str, float],
        keys: list[str],
        gradients: dict[str, Gradients],
    ) -> dict[str, float] | None:
        """Add one step; at a log step, write the means since the last one.

        Args:
            step: number of the step, counted from 1.
            terms: 0-dim device tensors, `skipped` among them.
            schedules: what was set before the step: by its number, and fp16's loss scale.
            keys: of this rank's clips in its batch.
            gradients: what the method knows of non-finite gradients.
        Returns:
            At a log step the terms' means over steps and ranks, on every rank.
        Raises:
            NonFiniteRun: at a log step, when optim.max_skipped steps in a row were skipped; on every rank alike.
        """
        finite = self.window.add(terms)
        self.suspects.add(step, keys, terms["skipped"], finite, gradients)
        if step % self.settings.log_every and step < self.config.steps:
            return None
        means, skipped, in_a_row = self.window.read(self.ranks.world_size)
        # One rank that waits for data, or runs out of memory, holds up all.
        waits, peaks = zip(*self.ranks.gather((self.waited, _peak_memory(self.ranks.device))), strict=True)
        now = time.monotonic()
        if self.ranks.is_main:
            rates = self._rates(step, now, waited=max(waits), memory=max(peaks))
            derived = self.facts.derived(means)
            self._write({"step": step, **means, **schedules, "skipped": skipped, **rates, **derived})
        self.since, self.since_step, self.waited, self.lengths = now, step, 0.0, 0.0
        if skipped:
            self._explain(step, in_a_row, schedules.get("loss_scale"))
        self.suspects.forget()
        return means

    def _explain(self, step: int, in_a_row: int, loss_scale: float | None) -> None:
        """Write down what was not finite in the skipped steps; too many in a row end the run."""
        explained = self.suspects.explain()
        if in_a_row < self.config.optim.max_skipped:
            return
        scale = "" if loss_scale is None else f" The loss scale was {loss_scale:g} by then."
        raise NonFiniteRun(
            f"{in_a_row} steps in a row up to step {step} had a non-finite loss or gradient and were skipped "
            f"(optim.max_skipped={self.config.optim.max_skipped}). Not finite in step {explained[-1]['step']}:\n"
            f"{describe(explained[-1])}\n"
            f"{self.suspects.path} says the same of each of them.{scale} Lower {self.facts.step_size_settings}, or "
            "use precision=fp32, and start again: the run goes on from its last checkpoint"
        )

    def validated(self, step: int, values: dict[str, float]) -> None:
        """Write what a validation pass measured after `step`."""
        named = {f"val_{name}": value for name, value in values.items()}
        if self.ranks.is_main:
            self.journal.write({"step": step, "event": "validation"} | {k: _finite(v) for k, v in named.items()})
        self.scalars(step, values, section="validation")
        self.say(f"validation after step {step}: {'  '.join(f'{name} {value:.4g}' for name, value in values.items())}")

    def scalars(self, step: int, values: dict[str, float], section: str = "checkpoint") -> None:
        """Write what happens now and then, such as a checkpoint, to TensorBoard."""
        if self.writer is not None and values:
            for name, value in values.items():
                self.writer.add_scalar(f"{section}/{name}", value, step)
            self.writer.flush()

    def wants_pictures(self, step: int) -> bool:
        """Whether `show` is due after `step`; the same on every rank."""
        every = self.settings.samples_every if self.settings.tensorboard else 0
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def show(self, step: int, rows: Tensor) -> None:
        """Write rows of clips, uint8 [rows, columns, T, H, W, 3], as moving pictures."""
        if self.writer is not None:
            for index, row in enumerate(rows):
                self.writer.file_writer.add_summary(gif_summary(f"samples/{index}", row), step)
            self.writer.flush()

    def note(self, step: int, event: str, text: str) -> None:
        """Say something about the run that belongs in its files as well; `event` is its kind."""
        self.say(text)
        if self.ranks.is_main:
            self.journal.write({"step": step, "event": event, "text": text})

    def say(self, text: str, file: TextIO | None = None) -> None:
        """One line for the console (or another file), from the main rank."""
        if self.ranks.is_main:
            print(f"\r\033[K{text}" if self.live else text, file=file, flush=True)

    def _rates(self, step: int, now: float, *, waited: float, memory: float) -> dict[str, float]:
        steps, seconds = max(1, step - self.since_step), max(1e-9, now - self.since)
        samples = steps * self.facts.samples_per_step / seconds
        whole = samples * self.lengths / steps  # in samples of full length
        rates = {
            "clips_per_s": samples,
            "tokens_per_s": whole * self.facts.tokens_per_sample,
            "step_seconds": seconds / steps,
            "data_wait": waited / seconds,
            "memory_gb": memory / 1e9,
        }
        most = self.settings.peak_flops or self._known_peak()
        if most:
            rates["mfu"] = whole * self.facts.flops_per_sample / (most * self.ranks.world_size)
        return rates

    def _known_peak(self) -> float:
        on_gpu = self.ranks.device.type == "cuda"
        device = known_device(torch.cuda.get_device_name(self.ranks.device)) if on_gpu else None
        return peak(self.config, device) if device is not None else 0.0

    def _write(self, row: dict[str, Any]) -> None:
        self.journal.write({key: _finite(value) for key, value in row.items()})
        if self.writer is not None:
            for key, value in row.items():
                if key != "step" and _finite(value) is not None:
                    self.writer.add_scalar(f"{_section(key)}/{key}", value, row["step"])
            self.writer.flush()
        line = self._line(row)
        if self.live and row["step"] < self.config.steps:
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            self.say(line)

    def _line(self, row: dict[str, Any]) -> str:
        done = row["step"] - self.start_step
        left = (time.monotonic() - self.start) / max(1, done) * (self.config.steps - row["step"])
        parts = [f"step {row['step']}/{self.config.steps}"]
        for key, form in self.facts.console:
            if isinstance(row.get(key), float):
                parts.append(form.format(row[key]))
        parts.append(f"{row['clips_per_s']:.2f} clips/s")
        if row["skipped"]:
            scale = f" (loss scale {row['loss_scale']:g})" if "loss_scale" in row else ""
            parts.append(f"{row['skipped']} skipped{scale}")
        parts.append(f"{_duration(left)} left")
        return "  ".join(parts)


def _section(key: str) -> str:
    for section, keys in SECTIONS.items():
        if key.startswith(keys):
            return section
    return "loss"


def _finite(value: Any) -> Any:
    """JSON and TensorBoard know no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak_memory(device: torch.device) -> float:
    """Most bytes held so far: on the GPU, or by this process where there is none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
