"""A training method on clips that is quick, for tests of the loop and its mishaps; what its runs write down.

second_method.py is a method that has nothing to do with clips.
"""

import json
import os
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.read.loader import Batch, Position
from model.provenance import Provenance, write_provenance
from trainer.autoencoder_builder import AutoencoderBuilder
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.gradient_watch import Gradients
from trainer.evaluation.validation import Validation
from trainer.method import Facts

STEPS = 9


class Killed(BaseException):
    """The end of the process, as far as the loop can tell."""


@dataclass
class Mishaps:
    """
    Args:
        stop_at: step in which it is asked to stop.
        broken_from: first step with a loss of NaN.
        bad: batches, by number from 1 on, that blow the value up.
        dies_at_call: call of `step` that ends the process.
    """

    stop_at: int | None = None
    broken_from: int | None = None
    bad: Collection[int] = ()
    dies_at_call: int | None = None


class Toy:
    """Follows the mean pixel with momentum and torch's global noise: every kind of state a checkpoint must carry."""

    def __init__(self, config: TrainConfig, ranks: Ranks, validation: Validation | None, mishaps: Mishaps) -> None:
        self.facts = Facts(samples_per_step=config.data.global_batch, tokens_per_sample=1.0, flops_per_sample=1.0)
        self.terms = ("total_loss", "steady")
        self.layout: dict[str, Any] = {}
        self.ranks, self.validation, self.mishaps, self.calls = ranks, validation, mishaps, 0
        self.value = torch.zeros(())
        torch.manual_seed(config.seed)

    def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
        mishaps = self.mishaps
        if step + 1 == mishaps.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.calls += 1
        if self.calls == mishaps.dies_at_call:
            raise Killed
        self.value = 0.9 * self.value + batch.video.float().mean() + torch.randn(())
        if batches_read(batch.position) in mishaps.bad:
            self.value = self.value + 1e5
        broken = mishaps.broken_from is not None and step >= mishaps.broken_from
        loss = self.loss = self.value * (torch.nan if broken else 1.0)
        return {"total_loss": loss, "steady": torch.ones(()), "skipped": torch.tensor(float(broken))}

    def length(self, batch: Batch) -> float:
        return 1.0

    def schedules(self, step: int) -> dict[str, float]:
        return {"lr_toy": 0.5 / (1 + step)}

    def pictures(self, batch: Batch, count: int) -> dict[str, Tensor]:
        torch.manual_seed(98)  # as in `validate`
        clips = {"samples_batch": batch.video[:count]}
        clips |= {"samples_val": self.validation.fixed_clips(count)} if self.validation is not None else {}
        return {name: video.permute(0, 2, 3, 4, 1)[:, None].repeat(1, 2, 1, 1, 1, 1) for name, video in clips.items()}

    def gradients(self) -> dict[str, Gradients]:
        return {"toy": Gradients(["value", "bias"], torch.tensor([bool(self.loss.isfinite()), True]))}

    def rebuild(self, video: Tensor) -> Tensor:
        return (video + self.value.abs() / 100).clamp(0, 1)

    def validate(self, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        torch.manual_seed(99)  # a careless method would do this: the loop has to put the generators back
        assert self.validation is not None
        return self.validation.run(self.rebuild, stop_requested)

    def forward_seconds(self) -> float:
        return 0.0

    saved_bytes = 4

    def save(self, directory: Path) -> None:
        torch.save(self.value, directory / "toy.pt")

    def load(self, directory: Path) -> None:
        self.value = torch.load(directory / "toy.pt", weights_only=True)

    def export(self, directory: Path, provenance: Provenance) -> None:
        if not self.ranks.is_main:
            return
        directory.mkdir()
        (directory / "value.txt").write_text(str(self.value.item()))
        write_provenance(directory, provenance)


class ToyBuilder(AutoencoderBuilder):
    """Opens the clips as for a training of VidTwin, and builds a toy."""

    def __init__(self, config: TrainConfig, ranks: Ranks, mishaps: Mishaps | None = None) -> None:
        super().__init__(config, ranks)
        self.mishaps = mishaps or Mishaps()

    def build(self, fresh: bool) -> Toy:  # type: ignore[override]
        return Toy(self.config, self.ranks, self.validation, self.mishaps)


def toy(
    stop_at: int | None = None,
    broken_from: int | None = None,
    bad: Collection[int] = (),
    dies_at_call: int | None = None,
) -> Callable[[TrainConfig, Ranks], ToyBuilder]:
    """The builder of a toy with `Mishaps`."""
    return partial(ToyBuilder, mishaps=Mishaps(stop_at, broken_from, bad, dies_at_call))


def batches_read(position: Position) -> int:
    """How many batches have been read up to a position: of the 11 clips, 8 make the 2 batches of an epoch."""
    return position.epoch * 2 + position.consumed // 4


def rows(config: TrainConfig, event: str | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl: those of logged steps, or those of one kind of event."""
    written = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in written if row.get("event") == event]


def losses(config: TrainConfig) -> list[tuple[int, float]]:
    return [(row["step"], row["total_loss"]) for row in rows(config)]


def checkpoints(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir())
