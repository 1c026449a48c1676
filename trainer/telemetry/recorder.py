"""Records a run: metrics.jsonl, the loggers (TensorBoard, Weights & Biases), and lines on the console.

The terms of a step stay on the device and are added up there. Only a log step reads them: once, as one tensor that is
averaged over ranks.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import Tensor

from data_pipeline.outside.console import write_over
from trainer.config.learning import Precision
from trainer.config.loader import settings_of, to_yaml
from trainer.config.run import RunConfig
from trainer.config.running import TelemetryConfig
from trainer.distributed import Ranks
from trainer.engine.gradient_watch import Gradients
from trainer.join.equality import on_all
from trainer.method import Facts
from trainer.telemetry.journal import Journal
from trainer.telemetry.loggers import Logger, any_wanted, open_loggers
from trainer.telemetry.nonfinite import NonFiniteRun, SkippedSteps, describe
from trainer.telemetry.pace import Pace
from trainer.telemetry.rank_table import RankTable, RankTime
from trainer.telemetry.running_means import RunningMeans

# TensorBoard's groups, each with the beginnings of its keys. All other keys are losses.
SECTIONS = {
    "schedule": ("lr_", "gan_", "kl_weight", "frames"),
    "gan": ("disc_", "adversarial_", "adaptive_", "logits_", "lecam_"),
    "latent": ("latent_",),
    "gradient": ("grad_norm", "skipped", "loss_scale"),
    "update": ("update_",),
    "speed": ("clips_per_s", "tokens_per_s", "step_seconds", "data_wait", "mfu", "memory_gb"),
}


class Telemetry:
    """Records a run. Every rank calls `record` at every step; the main rank writes."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.settings: TelemetryConfig = config.telemetry
        self.output = Path(config.output)
        self.means = RunningMeans(ranks.device)
        self.suspects = SkippedSteps(self.output / "nonfinite.jsonl", ranks)
        self.journal = Journal(self.output / "metrics.jsonl")
        self.rank_table = RankTable(self.output / "ranks.jsonl", ranks, self.settings.slow_rank, self.say)
        self.facts = Facts(samples_per_step=0, tokens_per_sample=0.0, flops_per_sample=0.0)
        self.pace = Pace(config, ranks)
        self.live = ranks.is_main and sys.stdout.isatty()
        self.loggers: list[Logger] = []  # on the main rank, from `begin` on

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
        self.rank_table.close()
        for logger in self.loggers:
            logger.close()

    def begin(self, step: int, facts: Facts, resumed: Path | None) -> None:
        """Open the files, without the rows of steps after `step`, which a run that was cut off may have written.

        Raises:
            ValueError: a logger refuses to start, on the main rank; raised on every rank.
        """
        self.facts = facts
        if resumed is not None:
            self.say(f"going on after step {step}, from {resumed}")
        if any_wanted(self.settings):
            self.loggers = on_all(self._open_loggers, self.ranks.gather)
        self._set_back(step)
        for logger in self.loggers:
            logger.text(step, "config", to_yaml(self.config))

    def _open_loggers(self) -> list[Logger]:
        return open_loggers(self.settings, self.output, settings_of(self.config)) if self.ranks.is_main else []

    def rolled_back(self, step: int, text: str, row: dict[str, Any]) -> None:
        """Set the files back to `step`, as the run was, and write the reason into them."""
        self._set_back(step)
        self.say(f"rolled back: {text}")
        if self.ranks.is_main:
            self.journal.write({"event": "rollback"} | row)
        for logger in self.loggers:
            logger.text(step, "rollback", text)
            logger.flush()

    def _set_back(self, step: int) -> None:
        self.pace.begin(step)
        self.means.clear()
        self.suspects.forget()
        self.rank_table.begin(step)
        if not self.ranks.is_main:
            return
        self.journal.set_back(step)
        self.suspects.set_back(step)
        for logger in self.loggers:
            logger.set_back(step)

    def is_log_step(self, step: int) -> bool:
        """Whether `record` writes at step `step`, counted from 1; the same on every rank."""
        return step % self.settings.log_every == 0 or step >= self.config.steps

    def record(
        self,
        step: int,
        terms: dict[str, Tensor],
        schedules: dict[str, float],
        keys: list[str],
        gradients: dict[str, Gradients],
        forward_seconds: Callable[[], float],
    ) -> dict[str, float] | None:
        """Add one step. At a log step, write the means since the last log step.

        Args:
            step: number of the step, counted from 1.
            terms: 0-dim device tensors, `skipped` among them.
            schedules: values that were set before the step: learning rates, weights, and fp16's loss scale.
            keys: of this rank's clips in its batch.
            gradients: network -> which of its gradients were finite, as far as the method knows.
            forward_seconds: `Method.forward_seconds`, called at log steps only.
        Returns:
            At a log step the terms' means over steps and ranks, on every rank.
        Raises:
            NonFiniteRun: at a log step, if optim.max_skipped steps in a row were skipped; raised on every rank.
        """
        finite = self.means.add(terms)
        self.suspects.add(step, keys, terms["skipped"], finite, gradients)
        if not self.is_log_step(step):
            return None
        means, skipped, in_a_row = self.means.read(self.ranks.world_size)
        # The largest values count, because one rank that waits for data or runs out of memory delays all ranks.
        mine = self.pace.waited, _peak_memory(self.ranks.device), forward_seconds()
        waits, peaks, forwards = zip(*self.ranks.gather(mine), strict=True)
        lap = self.pace.lap(step)
        if self.ranks.is_main:
            times = [RankTime(f / lap.steps, wait / lap.steps) for f, wait in zip(forwards, waits, strict=True)]
            self.rank_table.write(step, times)
            rates = self.pace.rates(lap, self.facts, waited=max(waits)) | {"memory_gb": max(peaks) / 1e9}
            derived = self.facts.derived(means)
            self._write({"step": step, **means, **schedules, "skipped": skipped, **rates, **derived})
        if skipped:
            self._explain(step, in_a_row, schedules.get("loss_scale"))
        self.suspects.forget()
        return means

    def _explain(self, step: int, in_a_row: int, loss_scale: float | None) -> None:
        """Write down what was not finite in the skipped steps, and end the run if too many were skipped in a row."""
        explained = self.suspects.explain()
        if in_a_row < self.config.optim.max_skipped:
            return
        scale = "" if loss_scale is None else f" The loss scale was {loss_scale:g} by then."
        raise NonFiniteRun(
            f"{in_a_row} steps in a row up to step {step} had a non-finite loss or gradient and were skipped "
            f"(optim.max_skipped={self.config.optim.max_skipped}). Not finite in step {explained[-1]['step']}:\n"
            f"{describe(explained[-1])}\n"
            f"{self.suspects.path} says the same of each of them.{scale} To mend it, {self.facts.smaller_steps}"
            f"{'' if self.config.precision is Precision.fp32 else ', or use precision=fp32'}, and start again"
        )

    def validated(self, step: int, values: dict[str, float]) -> None:
        """Write the values that a validation pass measured after `step`."""
        if self.ranks.is_main:
            self.journal.write({"step": step, "event": "validation"} | {k: _finite(v) for k, v in values.items()})
        self.scalars(step, values, section="validation")
        self.say(f"validation after step {step}: {'  '.join(f'{name} {value:.4g}' for name, value in values.items())}")

    def scalars(self, step: int, values: dict[str, float], section: str = "checkpoint") -> None:
        """Tell the loggers values that are not measured at every log step, such as those of a checkpoint."""
        finite = {f"{section}/{name}": value for name, value in values.items() if math.isfinite(value)}
        for logger in self.loggers if finite else ():
            logger.scalars(step, finite)
            logger.flush()

    def wants_pictures(self, step: int) -> bool:
        """Whether `show` is due after `step`; the same on every rank."""
        every = self.settings.samples_every if any_wanted(self.settings) else 0
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def show(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Show rows of clips, uint8 [rows, columns, T, H, W, 3], as moving pictures under the names of their groups."""
        for logger in self.loggers:
            for group, rows in pictures.items():
                for index, row in enumerate(rows):
                    logger.pictures(step, f"{group}/{index}", row)
            logger.flush()

    def keep(self) -> None:
        """Bring the rows so far to the disk. A run that goes on from a checkpoint does not write earlier rows again."""
        if self.ranks.is_main:
            self.journal.keep()

    def note(self, step: int, event: str, text: str) -> None:
        """Say something about the run that belongs in its files as well; `event` is its kind."""
        self.say(text)
        if self.ranks.is_main:
            self.journal.write({"step": step, "event": event, "text": text})

    def say(self, text: str, file: TextIO | None = None) -> None:
        """Print one line on the console, or to another file; only the main rank does."""
        if self.ranks.is_main:
            if self.live:
                write_over(file or sys.stdout, "")
            print(text, file=file, flush=True)

    def _write(self, row: dict[str, Any]) -> None:
        self.journal.write({key: _finite(value) for key, value in row.items()})
        shown = {f"{_section(key)}/{key}": row[key] for key in row if key != "step" and _finite(row[key]) is not None}
        for logger in self.loggers:
            logger.scalars(row["step"], shown)
            logger.flush()
        line = self._line(row)
        if self.live and row["step"] < self.config.steps:
            write_over(sys.stdout, line)
            sys.stdout.flush()
        else:
            self.say(line)

    def _line(self, row: dict[str, Any]) -> str:
        parts = [f"step {row['step']}/{self.config.steps}"]
        for key, form in self.facts.console:
            if isinstance(row.get(key), float):
                parts.append(form.format(row[key]))
        parts.append(f"{row['clips_per_s']:.2f} clips/s")
        if row["skipped"]:
            scale = f" (loss scale {row['loss_scale']:g})" if "loss_scale" in row else ""
            parts.append(f"{row['skipped']} skipped{scale}")
        parts.append(f"{self.pace.left(row['step'])} left")
        return "  ".join(parts)


def _section(key: str) -> str:
    for section, keys in SECTIONS.items():
        if key.startswith(keys):
            return section
    return "loss"


def _finite(value: Any) -> Any:
    """The value, or None instead of a float that is not finite, because JSON and TensorBoard have no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak_memory(device: torch.device) -> float:
    """The most bytes that were in use so far: on the GPU, or by this process where it uses no GPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
