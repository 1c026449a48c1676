"""Learning rates against torch's own schedulers at every step, also in a run that was stopped and started again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from tests.trainer.toy import STEPS, Toy, ToyBuilder, rows
from trainer.config.learning import OptimizerConfig, Shape
from trainer.config.train import TrainConfig
from trainer.loop import Stopped
from trainer.run import run

pytestmark = pytest.mark.numeric

LR, LR_START, LR_MIN = 1e-3, 1e-4, 2e-4


def torchs_rates(shape: Shape, warmup: int, steps: int) -> list[float]:
    """The rate of each step of a run, and the one after its end."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    after = steps - warmup
    falling: dict[Shape, Callable[[], LRScheduler]] = {
        Shape.constant: lambda: ConstantLR(optimizer, factor=1.0, total_iters=0),
        Shape.cosine: lambda: CosineAnnealingLR(optimizer, T_max=after, eta_min=LR_MIN),
        Shape.linear: lambda: LinearLR(optimizer, start_factor=1.0, end_factor=LR_MIN / LR, total_iters=after),
    }
    rising = LinearLR(optimizer, start_factor=LR_START / LR, total_iters=warmup)
    scheduler = SequentialLR(optimizer, [rising, falling[shape]()], milestones=[warmup])
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's SequentialLR calls its parts in a way that torch warns of
            scheduler.step()
    return rates


def schedule(shape: Shape, warmup: int) -> OptimizerConfig:
    return OptimizerConfig(lr=LR, lr_start=LR_START, lr_min=LR_MIN, warmup=warmup, schedule=shape)


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("warmup", [1, 7])
def test_every_rate_is_torchs(shape: Shape, warmup: int) -> None:
    found = [schedule(shape, warmup).lr_at(step, 60) for step in range(61)]
    assert found == pytest.approx(torchs_rates(shape, warmup, 60), rel=1e-9)
    assert found[60] == pytest.approx(LR if shape is Shape.constant else LR_MIN, rel=1e-12)


@pytest.mark.parametrize("shape", Shape)
def test_a_resumed_run_has_the_rates_of_an_undisturbed_one(config: TrainConfig, shape: Shape) -> None:
    class Scheduled(Toy):
        def __init__(self, optimizer: OptimizerConfig, *words: object) -> None:
            super().__init__(*words)  # type: ignore[arg-type]
            self.optimizer = optimizer

        def schedules(self, step: int) -> dict[str, float]:
            return {"lr_toy": self.optimizer.lr_at(step, STEPS)}

    class Builder(ToyBuilder):
        def build(self, fresh: bool) -> Toy:  # type: ignore[override]
            made = partial(Scheduled, self.config.optim.generator)
            return made(self.config, self.ranks, self.validation, self.mishaps)

    config = replace(config, optim=replace(config.optim, generator=schedule(shape, 3)))
    for stop, outcome in ((2, Stopped.PREEMPTED), (6, Stopped.PREEMPTED), (None, Stopped.FINISHED)):
        assert run(config, lambda c, r, stop=stop: _stopping(Builder(c, r), stop)) is outcome  # type: ignore[misc]
    found = [row["lr_toy"] for row in rows(config)]
    assert found == pytest.approx(torchs_rates(shape, 3, STEPS)[:STEPS], rel=1e-9)


def _stopping(builder: ToyBuilder, stop: int | None) -> ToyBuilder:
    builder.mishaps.stop_at = stop
    return builder
