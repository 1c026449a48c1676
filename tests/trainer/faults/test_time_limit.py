"""`max_hours`: the clock is a number that the steps move on, so that hours pass in no time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import Tensor

from data_pipeline.read.loader import Batch
from tests.trainer.cases import tiny_config
from tests.trainer.toy import Toy, ToyBuilder, checkpoints, losses
from tests.trainer.worlds import in_world
from trainer.config.train import TrainConfig
from trainer.faults.stop_request import StopRequest, StopRequested
from trainer.faults.time_limit import TimeLimit
from trainer.loop import Stopped
from trainer.run import run

STEP_S = 600.0


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def taking_time(clock: Clock) -> type[ToyBuilder]:
    """The builder of a toy whose steps take `STEP_S` seconds."""

    class Slow(Toy):
        def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
            clock.now += STEP_S
            return super().step(batch, step, observed)

    class Builder(ToyBuilder):
        def build(self, fresh: bool) -> Toy:  # type: ignore[override]
            return Slow(self.config, self.ranks, self.validation, self.mishaps)

    return Builder


def test_a_run_stops_before_the_hours_are_over_and_the_same_command_goes_on(
    config: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine steps of ten minutes in an hour each: the sixth would end at the hour, and could not be saved any more."""
    config.max_hours = 1.0
    clock = Clock()
    assert run(config, taking_time(clock), clock=clock) is Stopped.PREEMPTED
    assert checkpoints(config)[-1] == "step-00000005"
    assert "stopped by max_hours=1 after step 5, which is saved; the same command" in capsys.readouterr().out
    assert run(config, taking_time(clock), clock=clock) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_without_a_watchdog_time_is_kept_for_the_first_save() -> None:
    off = [f"watchdog.{name}_budget=0" for name in ("step", "start", "pause")]
    assert TimeLimit(tiny_config("run", "max_hours=1", *off)).reserve == 360.0
    assert TimeLimit(tiny_config("run", "max_hours=100")).reserve == 60 * 14.0


def test_hours_that_are_over_before_training_leave_nothing(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.max_hours = 1.0
    times: Iterator[float] = iter([0.0])
    assert run(config, ToyBuilder, clock=lambda: next(times, 3600.0)) is Stopped.PREEMPTED
    assert "stopped by max_hours=1 before training began" in capsys.readouterr().out
    assert not list(Path(config.output).glob("checkpoints/step-*"))


def step_of(limit: TimeLimit, clock: Clock, seconds: float) -> None:
    with limit.step():
        clock.now += seconds


def test_what_is_kept_free_is_the_longest_step_and_the_saves() -> None:
    clock, config = Clock(), tiny_config("unused", "max_hours=2", "checkpoint.staging=")
    limit = TimeLimit(config, clock)
    assert limit.reserve == 720  # no save was measured: a tenth of the hours
    step_of(limit, clock, 400)
    assert limit.reserve == 1120
    step_of(limit, clock, 20)
    step_of(limit, clock, 30)
    step_of(limit, clock, 10)
    assert limit.reserve == 750  # the first step, which warms up, does not count any more
    limit.saved(50)
    limit.saved(40)
    assert limit.reserve == 80
    clock.now = 5000 + 7200 - 81
    assert not limit.near()
    clock.now += 1
    assert limit.near()


def test_a_save_on_its_way_and_an_upload_are_counted_and_an_unmeasured_save_is_bounded() -> None:
    config = tiny_config("unused", "max_hours=100", "checkpoint.upload=/store")
    limit = TimeLimit(config, Clock())
    assert limit.reserve == 14 * 60 + 20  # the watchdog's budget of a save, and the wait for the upload
    limit.saved(9)
    assert limit.reserve == 2 * 9 + 20


def test_without_a_limit_no_time_is_the_end() -> None:
    clock = Clock()
    limit = TimeLimit(tiny_config("unused"), clock)
    clock.now += 1e9
    assert not limit.near()


def _one_rank_is_late() -> list[str]:
    """What each rank says why it stops: only the last one's clock has come to the limit."""
    dist.init_process_group("gloo")
    group, rank = dist.group.WORLD, dist.get_rank()
    clock = Clock()
    stop_request = StopRequest(group, None, TimeLimit(tiny_config("unused", "max_hours=1"), clock))
    stop_request.check()
    clock.now += 3600.0 * rank
    with pytest.raises(StopRequested):
        stop_request.check()
    reasons: list[str] = ["", ""]
    dist.all_gather_object(reasons, stop_request.reason)
    dist.destroy_process_group()
    return reasons


def test_the_first_rank_whose_time_is_over_stops_all() -> None:
    assert in_world(2, _one_rank_is_late) == ["max_hours=1"] * 2


def test_the_limit_may_change_when_a_run_goes_on(config: TrainConfig) -> None:
    clock = Clock()
    assert run(replace(config, max_hours=1.0), taking_time(clock), clock=clock) is Stopped.PREEMPTED
    assert run(config, taking_time(clock), clock=clock) is Stopped.FINISHED
