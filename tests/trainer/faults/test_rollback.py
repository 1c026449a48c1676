"""When a loss is a spike, by hand-made curves and the textbook's z-score; and whole runs that go back before one."""

import json
import math
import random
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.read.loader import Batch, ClipLoader, Position
from data_pipeline.store.open import open_store
from tests.trainer.toy import Killed, batches_read, checkpoints, losses, rows, toy
from trainer.config.running import RollbackConfig
from trainer.config.train import TrainConfig
from trainer.faults.rollback import find_spike
from trainer.faults.watchdog import Watchdog
from trainer.loop import Failed, Stopped
from trainer.run import run

CONFIG = RollbackConfig(factor=6.0, window=20, patience=2)


def curve(*values: float) -> list[tuple[int, float]]:
    return [(50 * (number + 1), value) for number, value in enumerate(values)]


def noisy(count: int, mean: float, deviation: float) -> list[float]:
    draw = random.Random(3)
    return [draw.gauss(mean, deviation) for _ in range(count)]


def test_a_jump_that_stays_is_a_spike_and_the_step_before_it_is_the_last_good_one() -> None:
    spike = find_spike(curve(*noisy(30, 100.0, 5.0), 150.0, 160.0), CONFIG)
    assert spike is not None
    assert spike.values == [150.0, 160.0]
    assert spike.good == 50 * 30
    assert spike.median == pytest.approx(100, abs=3)
    assert spike.deviation == pytest.approx(5, rel=0.5)


@pytest.mark.parametrize("mean", [0.0, 100.0, -3e5])
@pytest.mark.parametrize("height", [3.0, 4.5, 8.0, 20.0])
def test_the_limit_is_so_many_robust_deviations_whatever_the_sign_of_the_loss(mean: float, height: float) -> None:
    """Around -3e5 the deviation is 1e4, as it may be for a good model, whose loss is negative."""
    scale = max(10.0, abs(mean) / 30)
    before = noisy(20, mean, scale)
    centre = statistics.median(before)
    robust = statistics.median(abs(value - centre) for value in before) / 0.67449  # the normal's upper quartile
    last = centre + height * robust
    spike = find_spike(curve(*before, last, last), CONFIG)
    assert (spike is not None) is (height > 6)


@pytest.mark.parametrize(
    "values",
    [
        [*noisy(30, 100.0, 5.0), 900.0, 101.0],  # one bad value
        [*noisy(30, 100.0, 5.0), 20.0, 10.0],  # a jump down
        [1000.0 * math.exp(-n / 10) for n in range(32)],  # learning
        [100.0] * 30 + [100.5, 100.6],  # a plateau: without a floor any change would be infinitely many deviations
        [-100.0] * 30 + [-99.5, -99.4],  # and the floor is a distance, also below zero
        [*noisy(19, 100.0, 5.0), 900.0, 900.0],  # too few to know what is normal
    ],
)
def test_what_is_no_spike(values: list[float]) -> None:
    assert find_spike(curve(*values), CONFIG) is None


def test_switched_off_it_finds_nothing() -> None:
    assert find_spike(curve(*noisy(30, 100.0, 5.0), 900.0, 900.0), RollbackConfig()) is None


def test_a_negative_factor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollback\.factor=-1"):
        RollbackConfig(factor=-1)


# ---- whole runs ------------------------------------------------------------------------------------------------------

SPIKY = 32


@pytest.fixture
def spiky(config: TrainConfig) -> TrainConfig:
    config.rollback = RollbackConfig(factor=20.0, window=5, patience=2)
    config.steps, config.telemetry.tensorboard = SPIKY, False
    config.checkpoint.staging = ""  # where a toy `dies`, its process lives on, and so would the thread of its last save
    return config


@pytest.fixture
def never_seen(spiky: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Losses of a run without rollback whose loader goes from batch 12 straight to batch 16."""
    original = ClipLoader.from_position

    def skipping(self: ClipLoader, position: Position | None = None, while_waiting: object = None) -> Iterator[Batch]:
        for batch in original(self, position):
            yield batch
            if batches_read(batch.position) == 12:
                break
        yield from original(self, Position(7, 4))

    monkeypatch.setattr(ClipLoader, "from_position", skipping)
    other = replace(spiky, output=str(tmp_path / "never seen"), rollback=RollbackConfig())
    assert run(other, toy()) is Stopped.FINISHED
    monkeypatch.undo()
    return losses(other)


def decisions(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "rollbacks.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("died", "why"),
    [
        ([], "never"),
        ([14], "in the spike, before it is found"),
        ([17], "after the rollback, before the next checkpoint"),
        ([15, 3, 9], "in the spike, once more after the rollback, and after the next checkpoint"),
    ],
)
def test_after_a_rollback_the_run_is_one_that_never_saw_these_batches(
    spiky: TrainConfig, never_seen: list[tuple[int, float]], died: list[int], why: str
) -> None:
    """Batch 14 blows the value up: steps 14 and 15 are above, so back to the checkpoint of step 12, and to batch 16."""
    for call in died:
        with pytest.raises(Killed):
            run(spiky, toy(bad={14}, dies_at_call=call))
    assert run(spiky, toy(bad={14})) is Stopped.FINISHED
    assert losses(spiky) == never_seen, why
    assert [step for step, _ in never_seen] == list(range(1, SPIKY + 1))
    (decision,) = decisions(spiky)
    assert (decision["step"], decision["found"]) == (12, 15)
    (row,) = rows(spiky, "rollback")
    assert {key: row[key] for key in decision} == decision


def check_that_the_spikes_checkpoints_go(spiky: TrainConfig, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With more patience the spike is found after step 17, when the checkpoint of step 16 is of the spike."""
    store = open_store(uri)
    spiky.rollback.patience, spiky.checkpoint.upload = 4, uri
    with pytest.raises(Killed):
        run(spiky, toy(bad={14}, dies_at_call=17))
    assert checkpoints(spiky)[-1] == "step-00000016"
    with pytest.raises(Killed):
        run(spiky, toy(bad={14}, dies_at_call=2))  # step 17, and step 13 again
    assert checkpoints(spiky)[-1] == "step-00000012"
    kept = list(store.keys())
    assert "step-00000012/COMPLETE" in kept
    assert max(key.split("/")[0] for key in kept) == "step-00000012", "of the spike's nothing may be left"
    shutil.rmtree(Path(spiky.output) / "checkpoints")  # the store's are taken, then
    capsys.readouterr()
    assert run(spiky, toy(bad={14})) is Stopped.FINISHED
    assert "going on after step 12" in capsys.readouterr().out
    assert [(row["step"], row["found"]) for row in decisions(spiky)] == [(12, 17)]
    assert max(loss for _, loss in losses(spiky)) < 1e4
    folder = Path(spiky.output) / "checkpoints"
    assert sorted(store.keys()) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_checkpoints_of_the_spike_are_removed_here_and_in_a_folder(
    spiky: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_that_the_spikes_checkpoints_go(spiky, str(tmp_path / "store"), capsys)


@pytest.mark.s3
def test_checkpoints_of_the_spike_are_removed_here_and_in_s3(
    spiky: TrainConfig, s3_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_that_the_spikes_checkpoints_go(spiky, s3_uri, capsys)


def test_a_rollback_is_announced_and_shown(
    spiky: TrainConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    budgets: dict[str, float] = {}
    monkeypatch.setattr(Watchdog, "expect", lambda dog, what, minutes: budgets.update({what: minutes}))
    spiky.telemetry.tensorboard, spiky.steps = True, 18
    run(spiky, toy(bad={14}))
    line = "back to step 12, and on with the batches after step 15's"
    assert line in capsys.readouterr().out
    assert budgets["going back after step 15"] == spiky.watchdog.pause_budget > spiky.watchdog.step_budget
    events = EventAccumulator(str(Path(spiky.output) / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    (text,) = events.Tensors("rollback/text_summary")
    assert line in text.tensor_proto.string_val[0].decode()
    assert [event.step for event in events.Scalars("loss/total_loss")] == list(range(1, 19))


def test_rollbacks_are_limited(spiky: TrainConfig) -> None:
    spiky.rollback.limit = 2
    with pytest.raises(Failed, match=r"rollback\.limit=2 rollbacks have been made \(.*rollbacks\.jsonl lists them\)"):
        run(spiky, toy(bad=range(14, 1000)))
    assert [(row["step"], row["epoch"] * 2 + row["consumed"] // 4) for row in decisions(spiky)] == [(12, 15), (12, 17)]


def test_a_run_that_begins_anew_has_made_no_rollback(spiky: TrainConfig) -> None:
    """Whoever removes the checkpoints of a run starts another one in its directory."""
    spiky.rollback.limit, spiky.steps = 1, 18
    for _ in range(2):
        assert run(spiky, toy(bad={14})) is Stopped.FINISHED
        assert len(decisions(spiky)) == 1
        shutil.rmtree(Path(spiky.output) / "checkpoints")


def test_a_spike_before_the_first_checkpoint_stops_the_run(spiky: TrainConfig) -> None:
    spiky.checkpoint.every = 100
    with pytest.raises(Failed, match=r"spikes after step 13 .* there is no checkpoint from before it"):
        run(spiky, toy(bad={14}))
