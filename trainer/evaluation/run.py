"""Reconstructs windows, measures them, and reports what was measured and what was not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.store.counted import counted
from model.config import VidTwinConfig
from model.lpips import LPIPS
from model.vidtwin import VidTwin
from trainer.evaluation.frechet import HOW_TO_GET_I3D, VideoFrechet
from trainer.evaluation.metrics import reconstruct, window_values
from trainer.evaluation.read_ahead import prefetched
from trainer.evaluation.sources import Window, WindowSource

HOW_TO_GET_PERCEPTUAL = {
    "lpips": "pass --lpips lpips.safetensors; launch/convert_official.py extracts that file from a released "
    "checkpoint, and docs/evaluation.md says how to make it from torchvision's VGG16 and the LPIPS heads",
    "st_lpips": "pass --st-lpips; its weights come with pip install -e '.[perceptual]'",
}
METRICS = {  # name -> (unit, better)
    "psnr": ("dB", "higher"),
    "ssim": ("", "higher"),
    "lpips": ("", "lower"),
    "st_lpips": ("", "lower"),
    "fvd": ("", "lower"),
}


@dataclass
class Mean:
    """Running mean and standard deviation of per-window values."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Add one window's value."""
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def value(self) -> float:
        """The mean; NaN before the first value."""
        return self.total / self.count if self.count else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation between windows (population)."""
        return math.sqrt(max(0.0, self.squares / self.count - self.value**2)) if self.count else math.nan


@dataclass
class Measures:
    """Collects the metrics window by window. A metric is the mean over windows of the mean over a window's frames."""

    perceptual: Mapping[str, LPIPS] = field(default_factory=dict)
    fvd: VideoFrechet | None = None
    means: dict[str, Mean] = field(default_factory=dict)
    by_source: dict[str, dict[str, Mean]] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, names: list[str], real: Tensor, fake: Tensor) -> None:
        """Add windows.

        Args:
            names: of the source of each window.
            real, fake: [B, 3, T, H, W] in [0, 1].
        """
        for metric, values in window_values(real, fake, self.perceptual).items():
            for name, value in zip(names, values, strict=True):
                self.means.setdefault(metric, Mean()).add(value)
                self.by_source.setdefault(name, {}).setdefault(metric, Mean()).add(value)
        if self.fvd is not None:
            self.fvd.add(real, fake)

    def report(self) -> dict[str, Any]:
        """Values of the metrics that were computed; for the other metrics, the reason and how to get them."""
        metrics: dict[str, Any] = {}
        missing: dict[str, str] = {}
        remarks: list[str] = []
        for name, (unit, better) in METRICS.items():
            if name in self.means:
                mean = self.means[name]
                metrics[name] = {"value": mean.value, "deviation": mean.deviation, "unit": unit, "better": better}
        missing |= {name: way for name, way in HOW_TO_GET_PERCEPTUAL.items() if name not in self.perceptual}
        if self.fvd is None:
            missing["fvd"] = HOW_TO_GET_I3D
        else:
            distance, remark = self.fvd.result()
            if distance is None:
                missing["fvd"] = remark
            else:
                metrics["fvd"] = {"value": distance, "unit": "", "better": "lower"}
                remarks += [f"FVD: {remark}"] if remark else []
        per_source = {
            name: {"windows": means["psnr"].count, **{metric: mean.value for metric, mean in means.items()}}
            for name, means in self.by_source.items()
        }
        return {"metrics": metrics, "not_computed": missing, "remarks": remarks, "per_source": per_source}


class CutShort(Exception):
    """A measurement that ended before its source did, for the reason that is this exception's cause.

    Attributes:
        report: of the windows that were measured, as `evaluate` returns it.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(f"cut short after {counted(report['windows'], 'window')}")
        self.report = report


def window_frames(model: VidTwin, frames: int | None) -> int:
    """The number of frames in a window: `frames`, or for None the most that the model takes.

    Raises:
        ValueError: the model does not take `frames` frames.
    """
    most, least = model.config.frames, model.config.shortest
    if frames is None or least <= frames <= most:
        return most if frames is None else frames
    raise ValueError(f"--frames {frames}: this model takes {least} to {most} frames")


def evaluate(
    model: VidTwin,
    source: WindowSource,
    *,
    batch: int = 4,
    perceptual: Mapping[str, LPIPS] | None = None,
    fvd: VideoFrechet | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Reconstruct every window from its posterior means and measure the result.

    Args:
        model: in evaluation mode, on the device to use.
        source: of windows with a number of frames and a size that the model takes.
        batch: windows put through the networks together.
        perceptual: perceptual networks by the names of their metrics, `lpips` or `st_lpips`; they need weights.
        fvd: it needs weights as well; None leaves it out.
        progress: called with the number of windows done.
    Returns:
        A report that JSON can hold; `docs/evaluation.md` lists its keys.
    Raises:
        ValueError: the source gave no window; the message has the reasons.
        CutShort: a store failed, too much was unreadable or the user interrupted, after windows had been measured.
    """
    began = time.monotonic()
    measures = Measures(perceptual or {}, fvd)
    run = _Measurement(model, source, measures, batch)
    try:
        run.measure(progress)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if not run.windows:
            raise
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = "interrupted" if interrupted else str(error) or type(error).__name__
        raise CutShort(run.report(began, reason)) from error
    if not run.windows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in source.totals.failed[:5])
        raise ValueError(f"no window could be measured in {source.describe()}. {reasons}")
    return run.report(began, None)


@dataclass
class _Measurement:
    """One measurement and how far it is."""

    model: VidTwin
    source: WindowSource
    measures: Measures
    batch: int
    windows: int = 0
    config: VidTwinConfig | None = None  # the model for clips of the windows' length

    def measure(self, progress: Callable[[int], None] | None) -> None:
        """Go through the source."""
        device = self.model.last_layer.weight.device
        for windows in _batched(prefetched(self.source.windows(), depth=2 * self.batch), self.batch):
            real = torch.stack([window.video for window in windows]).to(device)
            self.measures.add([window.source for window in windows], real, reconstruct(self.model, real))
            self.windows += len(windows)
            self.config = replace(self.model.config, frames=real.shape[2], min_frames=0)
            if progress is not None:
                progress(self.windows)

    def report(self, began: float, incomplete: str | None) -> dict[str, Any]:
        """What was measured, as JSON has it."""
        totals, config, measured = self.source.totals, self.config, self.measures.report()
        assert config is not None
        return {
            "source": self.source.describe(),
            "frames_per_window": config.frames,
            "image_size": config.image_size,
            "windows": self.windows,
            "sources": totals.sources,
            "left_out_frames": totals.left_out_frames,
            "failed": [{"source": name, "reason": reason} for name, reason in totals.failed],
            "incomplete": incomplete,
            **measured,
            "remarks": totals.remarks + measured["remarks"],
            "compression_rate": config.compression_rate,
            "latents": {"structure": list(config.structure_shape), "dynamics": list(config.dynamics_shape)},
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "seconds": round(time.monotonic() - began, 2),
        }


def load_model(directory: str | Path, device: torch.device, untrained: bool = False, seed: int = 0) -> VidTwin:
    """The model of a model directory.

    Args:
        untrained: give the same architecture with fresh random weights instead, as a baseline.
        seed: of these random weights.
    Raises:
        ValueError, FileNotFoundError: the directory holds no usable model.
    """
    model = VidTwin.from_pretrained(directory, device=device)
    if untrained:
        torch.manual_seed(seed)
        model = VidTwin(model.config).to(device).eval()
    return model


def _shown(metric: str) -> str:
    return metric.upper().replace("_", "-")


def table(report: dict[str, Any]) -> str:
    """A report of `evaluate` as text for a terminal."""
    lines = [
        f"{report['source']}",
        f"{counted(report['windows'], 'window')} of {report['frames_per_window']} x {report['image_size']} x "
        f"{report['image_size']} from {counted(report['sources'], 'source')}, "
        f"{counted(report['left_out_frames'], 'frame')} left over",
        "",
    ]
    for name, (unit, better) in METRICS.items():
        if name in report["metrics"]:
            entry = report["metrics"][name]
            spread = f" ± {entry['deviation']:.3f} between windows" if "deviation" in entry else ""
            lines.append(f"  {_shown(name):<9}{entry['value']:>10.3f} {unit:<3}({better} is better){spread}")
        else:
            lines.append(f"  {_shown(name)} not computed: {report['not_computed'][name]}")
    lines.append(f"  RATE     {100 * report['compression_rate']:>10.3f} %  of the clip's numbers are in the latents")
    lines += [f"  note: {remark}" for remark in report["remarks"]]
    lines += [f"  cut short: {report['incomplete']}"] if report["incomplete"] else []
    lines += [f"  not measured: {item['source']}: {item['reason']}" for item in report["failed"]]
    return "\n".join(lines)


def _batched(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    held: list[Window] = []
    for window in windows:
        held.append(window)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
