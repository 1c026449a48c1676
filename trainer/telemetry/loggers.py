"""Where a run can be looked at while it trains: TensorBoard, Weights & Biases. metrics.jsonl is always there besides.

A logger is opened on the main rank only, and told everything that the telemetry writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from trainer.config.running import TelemetryConfig


class Logger(Protocol):
    """Shows what it is told. Steps count from 1, and a step may come with several calls."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite values by name; a name is `section/term`."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Text that is shown as it stands, whatever markup it holds: it may quote keys and errors of others."""
        ...

    def pictures(self, step: int, name: str, clips: Tensor) -> None:
        """Clips next to each other, uint8 [columns, T, H, W, 3]."""
        ...

    def set_back(self, step: int) -> None:
        """The run goes on after `step`: what it told of later steps does not count any more."""
        ...

    def flush(self) -> None:
        """Let readers see everything so far."""
        ...

    def close(self) -> None:
        """End; nothing is told afterwards."""
        ...


def any_wanted(settings: TelemetryConfig) -> bool:
    """Whether there is a logger, which is the same on every rank."""
    return settings.tensorboard or bool(settings.wandb)


def open_loggers(settings: TelemetryConfig, output: Path, run_settings: Mapping[str, object]) -> list[Logger]:
    """The loggers that the settings ask for.

    Args:
        output: the run's directory.
        run_settings: key -> value of the run's configuration, to be shown beside it.
    Raises:
        ValueError: Weights & Biases refuses to start a run.
    """
    # Both libraries take a second to import, so only a run that wants one loads it. Weights & Biases comes first,
    # because it may refuse, and a refused start leaves no files.
    loggers: list[Logger] = []
    if settings.wandb:
        from trainer.telemetry.weights_and_biases import WeightsAndBiases

        loggers.append(WeightsAndBiases(settings.wandb, output, run_settings))
    if settings.tensorboard:
        from trainer.telemetry.tensorboard import TensorBoard

        loggers.append(TensorBoard(output / "tensorboard"))
    return loggers
