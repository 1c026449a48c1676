"""What a run writes down: metrics.jsonl, TensorBoard, and lines for whoever is watching.

Terms stay on the device and are added up there; only a log step reads them, once, as one tensor averaged over ranks.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.dataset import Batch
from trainer.config import TelemetryConfig, TrainConfig
from trainer.config_loader import to_yaml
from trainer.distributed import Ranks
from trainer.pictures import gif_summary

# Dense 16-bit tensor-core peaks, FLOP/s, from NVIDIA's data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12}


class NonFiniteRun(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


class Telemetry:
    """Records a run; `record` is called by every rank at every step, the main rank writes."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.settings: TelemetryConfig = config.telemetry
        self.output = Path(config.output)
        self.window = Window(ranks.device)
        self.facts: dict[str, float] = {}
        self.waited = 0.0
        self.since, self.since_step, self.start, self.start_step = 0.0, 0, 0.0, 0
        self.live = ranks.is_main and sys.stdout.isatty()
        self.writer: Any = None
        self.rows: Any = None

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows is not None:
            self.rows.close()
        if self.writer is not None:
            self.writer.close()

    def begin(self, step: int, facts: dict[str, float], resumed: Path | None) -> None:
        """Open the files; rows of steps after `step`, from a run that was cut off, are dropped from metrics.jsonl."""
        self.facts = facts
        self.since = self.start = time.monotonic()
        self.since_step = self.start_step = step
        if not self.ranks.is_main:
            return
        if resumed is not None:
            self.say(f"going on after step {step}, from {resumed}")
        path = self.output / "metrics.jsonl"
        kept = [row for row in _rows(path) if row["step"] <= step]
        self.rows = path.open("w", buffering=1)
        self.rows.writelines(json.dumps(row) + "\n" for row in kept)
        if self.settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.output / "tensorboard"), purge_step=step + 1 if step else None)
            self.writer.add_text("config", f"```yaml\n{to_yaml(self.config)}\n```", step)

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, and measure how long each was waited for."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - before
            yield batch

    def record(self, step: int, terms: dict[str, Tensor], schedules: dict[str, float]) -> None:
        """Add one step's terms; at a log step, write the means since the last one.

        Raises:
            NonFiniteRun: at a log step, when optim.max_skipped steps in a row were skipped; on every rank alike.
        """
        self.window.add(terms)
        if step % self.settings.log_every and step < self.config.steps:
            return
        means, skipped, in_a_row, broken = self.window.read(self.ranks.world_size)
        now = time.monotonic()
        if self.ranks.is_main:
            row = {"step": step, **means, **schedules, "skipped": skipped, **self._rates(step, now)}
            if row.get("mse"):
                row["psnr"] = 10 * math.log10(4.0 / row["mse"])
            self._write(row)
        self.since, self.since_step, self.waited = now, step, 0.0
        if in_a_row >= self.config.optim.max_skipped:
            raise NonFiniteRun(
                f"{in_a_row} steps in a row up to step {step} had a non-finite gradient and were skipped "
                f"(optim.max_skipped={self.config.optim.max_skipped}); not finite in the last of them: "
                f"{', '.join(broken) or 'only the gradient'}. Lower optim.generator.lr or optim.clip, use "
                "precision=fp32, and start again: the run goes on from its last checkpoint"
            )

    def wants_pictures(self, step: int) -> bool:
        """Whether `show` is due after `step`; the same on every rank."""
        every = self.settings.samples_every if self.settings.tensorboard else 0
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def show(self, step: int, rows: Tensor) -> None:
        """Write rows of clips, uint8 [rows, columns, T, H, W, 3], as moving pictures."""
        if self.writer is not None:
            for index, row in enumerate(rows):
                self.writer._get_file_writer().add_summary(gif_summary(f"samples/{index}", row), step)
            self.writer.flush()

    def say(self, text: str) -> None:
        """One line for the console, from the main rank."""
        if self.ranks.is_main:
            print(f"\r\033[K{text}" if self.live else text, flush=True)

    def _rates(self, step: int, now: float) -> dict[str, float]:
        steps, seconds = max(1, step - self.since_step), max(1e-9, now - self.since)
        clips = steps * self.config.data.global_batch / seconds
        rates = {
            "clips_per_s": clips,
            "tokens_per_s": clips * self.facts["tokens_per_clip"],
            "step_seconds": seconds / steps,
            "data_wait": self.waited / seconds,
            "memory_gb": _peak_memory(self.ranks.device) / 1e9,
        }
        peak = self.settings.peak_flops or _known_peak(self.ranks.device)
        if peak:
            rates["mfu"] = clips * self.facts["flops_per_clip"] / (peak * self.ranks.world_size)
        return rates

    def _write(self, row: dict[str, Any]) -> None:
        self.rows.write(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n")
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
        for key, form in (("total_loss", "loss {:.4g}"), ("l1", "l1 {:.4f}"), ("psnr", "psnr {:.2f} dB")):
            if isinstance(row.get(key), float):
                parts.append(form.format(row[key]))
        for key, form in (("disc_loss", "disc {:.3f}"), ("adversarial_weight", "gan {:.3g}")):
            if isinstance(row.get(key), float):
                parts.append(form.format(row[key]))
        parts.append(f"{row['clips_per_s']:.2f} clips/s")
        if row["skipped"]:
            parts.append(f"{row['skipped']} skipped")
        parts.append(f"{_duration(left)} left")
        return "  ".join(parts)


class Window:
    """Sums of terms since the last log step, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.finite: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step. A non-finite value is left out of its term's mean."""
        terms = dict(terms)
        skipped = terms.pop("skipped")
        self.skipped = self.skipped + skipped
        self.in_a_row = (self.in_a_row + skipped) * skipped
        self.last = {}
        for name, value in terms.items():
            finite = torch.isfinite(value)
            self.last[name] = finite
            zero = torch.zeros((), device=self.device)
            self.sums[name] = self.sums.get(name, zero) + torch.where(finite, value.double(), zero.double())
            self.finite[name] = self.finite.get(name, zero) + finite

    def read(self, ranks: int) -> tuple[dict[str, float], int, int, list[str]]:
        """Average, then start over. The one place where the host waits for the device.

        Returns:
            Means over steps and ranks; steps skipped since the last reading; steps skipped in a row up to now; the
            terms that were not finite in the last step.
        """
        names = sorted(self.sums)
        zero = torch.zeros((), device=self.device, dtype=torch.double)
        table = torch.stack(
            [self.sums[name] for name in names]
            + [self.finite[name].double() for name in names]
            + [1.0 - self.last[name].double() if name in self.last else zero for name in names]
        )
        if ranks > 1:
            dist.all_reduce(table)
        flat = torch.cat([table, self.skipped.double()[None], self.in_a_row.double()[None]]).tolist()
        count = len(names)
        sums, finite, broken = flat[:count], flat[count : 2 * count], flat[2 * count : 3 * count]
        means = {name: total / n if n else math.nan for name, total, n in zip(names, sums, finite, strict=True)}
        self.sums, self.finite = {}, {}
        self.skipped = torch.zeros_like(self.skipped)
        bad = [name for name, count in zip(names, broken, strict=True) if count and not name.startswith("grad_norm")]
        return means, int(flat[-2]), int(flat[-1]), bad


def _section(key: str) -> str:
    for section, keys in {
        "schedule": ("lr_", "gan_weight"),
        "gradient": ("grad_norm", "skipped"),
        "speed": ("clips_per_s", "tokens_per_s", "step_seconds", "data_wait", "mfu", "memory_gb"),
    }.items():
        if key.startswith(keys):
            return section
    return "loss"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a metrics file; a last line that a crash cut off is left out."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        if line.endswith("}"):
            yield json.loads(line)


def _finite(value: Any) -> Any:
    """JSON and TensorBoard know no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak_memory(device: torch.device) -> float:
    """Most bytes held so far: on the GPU, or by this process where there is none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _known_peak(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), 0.0)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
