"""A training method that has nothing to do with video, for tests of the loop; what its runs write down."""

import json
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.read.loader import Batch, Position
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.gradient_watch import Gradients
from trainer.run import BuildMethod

STEPS = 9


class Toy:
    """Follows the mean pixel with momentum and torch's global noise: every kind of state a checkpoint must carry."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        told_at: int | None,
        broken_from: int | None,
        bad: Collection[int],
        dies_at_call: int | None,
    ) -> None:
        self.facts = {"tokens_per_clip": 1.0, "flops_per_clip": 1.0}
        self.terms = ("total_loss", "steady")
        self.told_at, self.broken_from = told_at, broken_from
        self.bad, self.calls_left = bad, dies_at_call
        self.value = torch.zeros(())
        torch.manual_seed(config.seed)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if step + 1 == self.told_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise Killed
        self.value = 0.9 * self.value + batch.video.float().mean() + torch.randn(())
        if batches_read(batch.position) in self.bad:
            self.value = self.value + 1e5
        broken = self.broken_from is not None and step >= self.broken_from
        loss = self.loss = self.value * (torch.nan if broken else 1.0)
        return {"total_loss": loss, "steady": torch.ones(()), "skipped": torch.tensor(float(broken))}

    def schedules(self, step: int) -> dict[str, float]:
        return {"lr_toy": 0.5 / (1 + step)}

    def pictures(self, batch: Batch, count: int) -> Tensor:
        return batch.video[:count].permute(0, 2, 3, 4, 1)[:, None].repeat(1, 2, 1, 1, 1, 1)

    def gradients(self) -> dict[str, Gradients]:
        return {"toy": Gradients(["value", "bias"], torch.tensor([bool(self.loss.isfinite()), True]))}

    @contextmanager
    def evaluating(self, ema: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        torch.manual_seed(99)  # what a careless method would do: the pass has to put the generators back
        yield lambda video: (video + self.value.abs() / 100).clamp(0, 1)

    def save(self, directory: Path) -> None:
        torch.save(self.value, directory / "toy.pt")

    def load(self, directory: Path) -> None:
        self.value = torch.load(directory / "toy.pt", weights_only=True)

    def export(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "value.txt").write_text(str(self.value.item()))


class Killed(BaseException):
    """The end of the process, as far as the loop can tell."""


def toy(
    told_at: int | None = None,
    broken_from: int | None = None,
    bad: Collection[int] = (),
    dies_at_call: int | None = None,
) -> BuildMethod:
    """
    Args:
        told_at: step in which it is told to stop.
        broken_from: first step with a loss of NaN.
        bad: batches, by number from 1 on, that blow the value up.
        dies_at_call: call of `step` that ends the process.
    """
    return lambda config, ranks, fresh: Toy(config, ranks, told_at, broken_from, bad, dies_at_call)


def batches_read(position: Position) -> int:
    """How many batches have been read up to a position: of the 11 clips, 8 make the 2 batches of an epoch."""
    return position.epoch * 2 + position.consumed // 4


def rows(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def losses(config: TrainConfig) -> list[tuple[int, float]]:
    return [(row["step"], row["total_loss"]) for row in rows(config)]


def logged(config: TrainConfig) -> list[tuple[int, float]]:
    return [(row["step"], row["total_loss"]) for row in rows(config) if "event" not in row]


def checkpoints(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir())
