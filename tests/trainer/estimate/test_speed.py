"""Predicted speed against closed forms of a machine whose times are known, and the stopwatch on real steps."""

import errno
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.trainer.cases import tiny_config
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.estimate import prediction, stopwatch
from trainer.estimate.options import Options
from trainer.estimate.prediction import measured, predicted
from trainer.estimate.speed import (
    Timing,
    depths_to_time,
    from_data_sheet,
    from_timings,
    text,
    traffic,
)
from trainer.estimate.stopwatch import StopwatchError, TimingPlan, take_timings, time_steps
from trainer.estimate.trace import Trace, trace

GB = 1e9


@pytest.fixture(scope="module")
def one_block() -> Trace:
    return trace(config_of("model.depth=1"), 6)


def config_of(*words: str) -> TrainConfig:
    return tiny_config("run", "data.global_batch=24", *words)


# A machine of which everything is known, in seconds: a micro-batch, a block, the update, a block of it, discriminator.
MICRO, BLOCK, UPDATE, BLOCK_UPDATE, DISCRIMINATOR = 0.7, 0.03, 0.05, 0.02, 0.25


def seconds(depth: int, rounds: int, *, discriminator: bool = True) -> float:
    return rounds * (MICRO + depth * BLOCK + discriminator * DISCRIMINATOR) + update(depth)


def update(depth: int) -> float:
    return UPDATE + depth * BLOCK_UPDATE


def timings_for(config: TrainConfig, ranks: int) -> list[Timing]:
    _, rounds = config.split_batch(ranks)
    return [
        Timing(d, seconds(d, rounds), seconds(d, rounds, discriminator=False), update(d))
        for d in depths_to_time(config)
    ]


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize("accumulation", [1, 2, 6])
@pytest.mark.parametrize("ranks", [1, 2])
def test_where_all_ranks_were_timed_only_depth_is_extrapolated(depth: int, accumulation: int, ranks: int) -> None:
    config = config_of(f"model.depth={depth}", f"accumulation={accumulation}")
    found = from_timings(timings_for(config, ranks), config, ranks, timed_on=ranks, sent=9e9, bandwidth=1.0)
    assert found.step == pytest.approx(seconds(depth, accumulation))
    assert found.before == pytest.approx(seconds(depth, accumulation, discriminator=False))
    assert found.clips_per_second == pytest.approx(24 / seconds(depth, accumulation))
    assert found.communication == 0


def test_one_rank_for_four_pays_for_what_is_sent_and_updates_its_share() -> None:
    config = config_of("model.depth=12", "accumulation=3", "zero.stage=2")
    found = from_timings(timings_for(config, 4), config, 4, timed_on=1, sent=3 * GB, bandwidth=2.0)
    assert found.communication == pytest.approx(1.5)
    assert found.step == pytest.approx(seconds(12, 3) - 3 / 4 * update(12) + 1.5)
    whole = config_of("model.depth=12", "accumulation=3", "zero.stage=0")
    found = from_timings(timings_for(whole, 4), whole, 4, timed_on=1, sent=3 * GB, bandwidth=float("inf"))
    assert found.step == pytest.approx(seconds(12, 3))  # every rank updates all


def test_some_of_many_ranks_pay_for_the_rest_and_save_nothing() -> None:
    config = config_of("model.depth=4", "zero.stage=1")
    found = from_timings(timings_for(config, 8), config, 8, timed_on=2, sent=GB, bandwidth=4.0)
    assert found.step == pytest.approx(seconds(4, 1) + 0.25)


def test_noise_does_not_make_a_deeper_model_faster() -> None:
    config = config_of("model.depth=9", "gan.weight=0")
    found = from_timings([Timing(2, 0.52), Timing(4, 0.5)], config, 1, timed_on=1, sent=0, bandwidth=1)
    assert (found.step, found.before) == (pytest.approx(0.51), None)


def test_a_block_takes_the_same_with_the_discriminator_and_without() -> None:
    """The slope is that of both phases, the distance between them that of both depths."""
    samples = [Timing(2, 1.0, before=0.5), Timing(4, 1.2, before=0.8)]
    found = from_timings(samples, config_of("model.depth=9"), 1, timed_on=1, sent=0, bandwidth=1)
    slope = (0.2 / 2 + 0.3 / 2) / 2
    assert found.step == pytest.approx(1.1 + 6 * slope)
    assert found.before == pytest.approx(0.65 + 6 * slope)


def test_a_quarter_and_half_of_the_depth_are_timed() -> None:
    def timed(*words: str) -> list[int]:
        return depths_to_time(config_of(*words))

    assert [timed(f"model.depth={depth}") for depth in (1, 2, 3, 11, 16)] == [[1], [2], [1, 2], [2, 5], [4, 8]]
    groups = ("activation_checkpointing.mode=every", "activation_checkpointing.every=3")
    assert [timed(f"model.depth={depth}", *groups) for depth in (6, 7, 30)] == [[6], [3, 6], [6, 15]]


def test_traffic_by_hand(one_block: Trace) -> None:
    """In weights' worth of bytes, on four ranks: an all-reduce is 2 x 3/4, a gathering or scattering 3/4."""
    words = ("model.depth=1", "accumulation=2", "gan.weight=0")
    found = replace(one_block, discriminator=None)
    weights = 4 * found.network.learning
    moved = [traffic(config_of(*words, f"zero.stage={stage}"), found, 4) / weights for stage in (0, 1, 2, 3)]
    assert moved == [1.5, 2.25, 3.75, 3.0]
    assert traffic(config_of(*words), found, 1) == 0


def test_a_data_sheet_knows_operations_and_traffic_only(one_block: Trace) -> None:
    config, found = config_of("model.depth=1", "accumulation=2"), one_block
    speed = from_data_sheet(found, config, 2, 1e9, sent=3 * GB, bandwidth=6.0)
    assert speed.step == pytest.approx(2 * found.flops / 1e9 + 0.5)
    assert speed.clips_per_second == pytest.approx(24 / speed.step)
    assert from_data_sheet(found, config, 1, 1e9, sent=0, bandwidth=6.0).step == pytest.approx(4 * found.flops / 2e9)


def test_the_text_says_what_is_assumed() -> None:
    config = config_of("model.depth=12", "accumulation=3")
    found = from_timings(timings_for(config, 4), config, 4, timed_on=1, sent=3 * GB, bandwidth=2.0)
    assert text(found, 3 * GB, 2.0).splitlines() == [
        "speed           4.36 clips/s over all ranks, 5.5 s a step, with the discriminator",
        "before gan.start 5.05 clips/s, 4.75 s a step",
        "communication   1.5 s of that: 3 GB a rank, at 2 GB/s (assumed: --bandwidth)",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"device": "this", "share": 0.5}, "--share"),
        ({"device": "h100", "share": 0.0}, "--share"),
        ({"device": "h100", "bandwidth": 0.0}, "--bandwidth"),
        ({"device": "h100", "measure": 1}, "--measure needs --device this"),
    ],
)
def test_options_that_make_no_sense(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Options(**words)


class FakeSteps:
    """Steps of the known machine, every third stretch disturbed; it notes who was timed when."""

    timed: list[tuple[int, int]] = []  # noqa: RUF012

    def __init__(self, config: TrainConfig, ranks: Ranks, depth: int, micro_batch: int, rounds: int) -> None:
        self.depth, self.rounds, self.phases, self.calls = depth, rounds, [40, 0], 0

    def warm_up(self) -> float:
        return 0.2

    def stretch(self, phase: int, steps: int) -> float:
        assert steps == 3  # of 0.2 s, to last at least 0.5 s
        self.calls += 1
        self.timed.append((self.depth, phase))
        return seconds(self.depth, self.rounds, discriminator=phase > 0) + (5 if self.calls % 3 == 0 else 0)

    def update_seconds(self) -> float:
        return update(self.depth)


def test_stretches_take_turns_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        def broadcast(self, value: float) -> float:
            return value

    monkeypatch.setattr(stopwatch, "Steps", FakeSteps)
    monkeypatch.setattr(FakeSteps, "timed", [])
    config = config_of("model.depth=16", "accumulation=6", "zero.stage=1")
    plan = TimingPlan(1, 6, depths_to_time(config), update=True)
    assert take_timings(config, plan, Alone()) == timings_for(config, 4)  # type: ignore[arg-type]
    turn = [(depth, phase) for depth in (4, 8) for phase in (40, 0)]
    assert FakeSteps.timed == stopwatch.STRETCHES * turn


@pytest.mark.slow
def test_real_steps_are_timed() -> None:
    """Of everything that a step can have: LPIPS without its weights, a frozen encoder, a moving average, ZeRO."""
    config = config_of(
        *("model.depth=3", "loss.perceptual=lpips", "loss.lpips_weights=none", "freeze=encoder", "init_from=none"),
        *("zero.stage=2", "ema.decay=0.9", "gan.start=3"),
    )
    (found,) = time_steps(config, TimingPlan(1, 2, [1], update=True, stretches=1), 1)
    assert found.depth == 1
    assert found.before is not None
    assert min(found.seconds, found.before, found.update) > 0


@pytest.mark.parametrize("measure", [None, 1])
def test_ranks_on_processors_are_timed_together_unless_one_is_to_stand_for_all(
    measure: int | None, one_block: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def timed(config: TrainConfig, plan: TimingPlan, on: int) -> list[Timing]:
        asked.append((plan, on))
        return timings_for(config, 2)

    monkeypatch.setattr(prediction, "time_steps", timed)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = config_of("model.depth=4", "data.global_batch=8", "zero.stage=1")
    shown = predicted(config, one_block, 2, Options("this", measure=measure))
    assert asked == [(TimingPlan(4, 1, [1, 2], update=measure == 1), measure or 2)]
    assert f"from steps timed here: {'one rank' if measure else '2 ranks'}, depth 1 and 2 for 4" in shown
    assert ("GB/s (assumed" in shown) == (measure == 1)
    assert (f"{8 / seconds(4, 1):.3g} clips/s" in shown) == (measure is None)


def test_a_data_sheet_is_called_an_assumption(one_block: Trace) -> None:
    shown = [predicted(config_of("model.depth=1"), one_block, 2, Options("a100", share)) for share in (None, 0.3)]
    assert "from a data sheet: 0.34 (an assumption, no measurement) of 156 TFLOP/s" in shown[0]
    assert "from a data sheet: 0.3 (given) of 156 TFLOP/s" in shown[1]


@pytest.mark.parametrize(("arithmetic", "told"), [(190e-6, False), (210e-6, True)])
def test_a_data_sheet_says_nothing_of_a_step_that_is_shorter_than_the_start_of_its_kernels(
    one_block: Trace, arithmetic: float, told: bool
) -> None:
    """At 34 % of 156 TFLOP/s; what the two ranks send to each other is no arithmetic."""
    traced = replace(one_block, flops=arithmetic * 0.34 * 156e12)
    shown = predicted(config_of("data.global_batch=2"), traced, 2, Options("a100", bandwidth=1e-3))
    assert ("hours" in shown) == told
    assert ("not known: the arithmetic of a step takes 190 microseconds" in shown) == (not told)


def test_what_cannot_be_timed_is_said(one_block: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan = config_of(), TimingPlan(1, 1, [1], update=False)
    with pytest.raises(ValueError, match="--measure 3 must lie between 1 and the 2"):
        measured(config, one_block, 2, timed_on=3, bandwidth=1.0)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        time_steps(config_of("precision=fp16"), plan, 1)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(StopwatchError, match="rank 0 said last"):
        time_steps(config, plan, 1)


def test_ranks_that_have_started_end_where_a_later_one_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def full(*_: object, **__: object) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(["sleep", "60"]))
        return started[0]

    monkeypatch.setattr("trainer.estimate.stopwatch.subprocess.Popen", full)
    with pytest.raises(BlockingIOError):
        time_steps(config_of(), TimingPlan(1, 1, [1], update=False), 2)
    assert started[0].returncode == -signal.SIGKILL
