"""A second training method for the same loop: it fits a line to points, and knows no clips, no DeepSpeed and no LPIPS.

It shows all that a method has to bring; `FitBuilder` opens its data, `PointLoader` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.read.loader import Position
from data_pipeline.store.files import atomic_folder
from model.provenance import Provenance, write_provenance
from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.engine.gradient_watch import Gradients
from trainer.method import Facts

EPOCH = 5


@dataclass(kw_only=True)
class FitConfig(RunConfig):
    """Its own settings, beside those of every run."""

    # slope of the line that the points lie on
    slope: float = 3.0
    # learning rate
    lr: float = 0.1


@dataclass
class Points:
    """A batch."""

    x: Tensor
    keys: list[str]
    position: Position


class PointLoader:
    """Batches of two points, drawn from their position; an epoch has `EPOCH` batches."""

    identity: Mapping[str, Any] = {"epoch": EPOCH}
    shared_bytes = 0

    def continue_from(self, saved: Mapping[str, Any], position: Position) -> str:
        assert saved == self.identity
        return ""

    def from_position(
        self, position: Position | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[Points]:
        position = position or Position()
        number = position.epoch * EPOCH + position.consumed
        while True:
            generator = torch.Generator().manual_seed(number)
            number += 1
            x = torch.rand(2, generator=generator)
            yield Points(x, [f"{value:.3f}" for value in x.tolist()], Position(*divmod(number, EPOCH)))

    def close(self) -> None:
        """There are no workers."""


class Fit:
    """A linear layer under SGD with momentum, with noise from torch's generator on its target."""

    facts = Facts(samples_per_step=2, tokens_per_sample=1.0, flops_per_sample=4.0, smaller_steps="lower lr")
    terms = ("total_loss",)
    layout: Mapping[str, Any] = {}

    def __init__(self, config: FitConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.line = config, nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.line.parameters(), lr=config.lr, momentum=0.9)

    def _error(self, x: Tensor) -> Tensor:
        return (self.line(x[:, None])[:, 0] - self.config.slope * x).square().mean()

    def step(self, batch: Points, step: int, observed: bool) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        loss = self._error(batch.x + 0.01 * torch.randn(2))
        loss.backward()
        self.optimizer.step()
        return {"total_loss": loss.detach(), "skipped": torch.zeros(())}

    def length(self, batch: Points) -> float:
        return 1.0

    def schedules(self, step: int) -> dict[str, float]:
        return {"lr": self.config.lr}

    def gradients(self) -> dict[str, Gradients]:
        return {}

    @torch.no_grad()
    def pictures(self, batch: Points, count: int) -> dict[str, Tensor]:
        """The error of the line as a grey square."""
        grey = (255 * self._error(torch.rand(8))).clamp(0, 255).byte()
        return {"errors": grey.expand(1, 1, 1, 4, 4, 3)}

    @torch.no_grad()
    def validate(self, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        return None if stop_requested() else {"val_error": self._error(torch.rand(8)).item()}

    def forward_seconds(self) -> float:
        return 0.0

    saved_bytes = 4 * 4  # a weight and a bias, and the momentum of each

    def save(self, directory: Path) -> None:
        torch.save([self.line.state_dict(), self.optimizer.state_dict()], directory / "fit.pt")

    def load(self, directory: Path) -> None:
        line, optimizer = torch.load(directory / "fit.pt", weights_only=True)
        self.line.load_state_dict(line)
        self.optimizer.load_state_dict(optimizer)

    def export(self, directory: Path, provenance: Provenance) -> None:
        with atomic_folder(directory) as folder:
            torch.save(self.line.state_dict(), folder / "line.pt")
            write_provenance(folder, provenance)


class FitBuilder:
    """Nothing is opened, and little is built."""

    def __init__(self, config: FitConfig, ranks: Ranks) -> None:
        self.config, self.loader = config, PointLoader()

    def check_parent(self, order: Mapping[str, Any]) -> None:
        """Every line takes every data."""

    def describe_data(self) -> list[str]:
        return [f"points on a line of slope {self.config.slope}"]

    def build(self, fresh: bool) -> Fit:
        return Fit(self.config)
