"""Which checkpoints stay: a run of the toy method whose validation says what the test wants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.toy import STEPS, Killed, Toy, checkpoints, losses, toy
from trainer.checkpoint.retention import Best, Retention
from trainer.config.running import CheckpointConfig, ClipValidationConfig
from trainer.config.train import TrainConfig
from trainer.loop import Stopped
from trainer.run import run


@pytest.fixture
def validated(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A validation every second step, and checkpoints that are only made for their own sake."""
    clips = make_clips(11, frames=(9, 12)) + make_clips(3, frames=(9, 17), split="val")
    data = write_dataset(tmp_path / "with val", split_into_shards(clips, [4]))
    config.data = replace(config.data, shards=str(data))
    config.validation = ClipValidationConfig(every=2)
    config.checkpoint = CheckpointConfig(every=100, keep=1, best="val_psnr")
    return config


def says(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """What the passes after steps 2, 4, ... find."""
    left = iter(values)

    def validate(toy: Toy, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        return {"val_psnr": next(left), "val_st_lpips": 0.5}

    monkeypatch.setattr(Toy, "validate", validate)


def best_of(config: TrainConfig) -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(config.output) / "checkpoints" / "best.json").read_text())
    return found


def test_the_best_stays_beside_the_newest(validated: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = replace(validated, output=f"{validated.output}-plain", checkpoint=CheckpointConfig(every=100))
    says(monkeypatch, 1, 1, 1, 1)
    run(undisturbed, toy())
    says(monkeypatch, 10.0, 14.0, float("nan"), 13.0)
    assert run(validated, toy()) is Stopped.FINISHED
    assert checkpoints(validated) == ["best.json", "step-00000004", f"step-{STEPS:08d}"]
    assert best_of(validated) == {"step": 4, "term": "val_psnr", "value": 14.0}
    assert losses(validated) == losses(undisturbed)


def test_a_run_that_goes_on_knows_its_best(validated: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed in step 8, when the best was of step 4: what comes then is less, and is not saved for it."""
    validated.checkpoint.every = 3
    says(monkeypatch, 10.0, 14.0, 11.0)
    with pytest.raises(Killed):
        run(validated, toy(dies_at_call=8))
    says(monkeypatch, 13.0, 13.0)  # after step 8, and once more after step 6 where that checkpoint was cut off
    assert run(validated, toy()) is Stopped.FINISHED
    assert checkpoints(validated) == ["best.json", "step-00000004", f"step-{STEPS:08d}"]
    assert best_of(validated)["step"] == 4


def test_less_is_better_of_what_is_no_ratio_or_similarity() -> None:
    for term, values in (("val_psnr", (1, 2, 2, 1)), ("val_st_lpips", (2, 1, 1, 3))):
        retention, found = Retention(CheckpointConfig(best=term)), []
        for step, value in enumerate(values):
            best = retention.better(step, {term: float(value)})
            if best is not None:
                found.append(step)
                retention.add(best)
        assert found == [0, 1]
    with pytest.raises(ValueError, match=r"checkpoint\.best=val_ssim is no term of validation; choose one of val_psnr"):
        Retention(CheckpointConfig(best="val_ssim")).better(1, {"val_psnr": 1.0})


def test_a_value_without_end_is_no_best() -> None:
    """A state.json with the word Infinity would be no JSON, so that its checkpoint would count as damaged."""
    for term, value in (("val_psnr", math.inf), ("val_st_lpips", math.inf), ("val_st_lpips", -math.inf)):
        assert Retention(CheckpointConfig(best=term)).better(1, {term: value}) is None


def test_the_best_before_stays_until_the_new_one_is_complete() -> None:
    retention = Retention(CheckpointConfig(best="val_psnr", keep=1))
    retention.add(Best(2, "val_psnr", 1.0))
    retention.add(Best(6, "val_psnr", 2.0))
    assert retention.superseded([1, 2, 5]) == [1]
    assert retention.superseded([1, 2, 5, 6, 7]) == [1, 2, 5]
    retention.restore(Best(2, "val_ssim", 1.0))  # another term was asked for then
    assert retention.best is None


def test_after_a_step_back_the_best_is_that_of_the_run_as_it_is_now(
    validated: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 was the best and is left behind; its number comes again, with a lower value."""
    validated.checkpoint.keep = 9
    says(monkeypatch, 10.0, 14.0, 16.0, 13.0)
    run(validated, toy())
    assert best_of(validated)["step"] == 6
    says(monkeypatch, 12.0, 11.0)
    back = replace(validated, checkpoint=replace(validated.checkpoint, resume="4"))
    assert run(back, toy()) is Stopped.FINISHED
    assert best_of(validated) == {"step": 4, "term": "val_psnr", "value": 14.0}
    other = replace(validated, steps=STEPS + 1, checkpoint=replace(validated.checkpoint, best=""))
    says(monkeypatch, 1.0)
    run(other, toy())
    assert not (Path(validated.output) / "checkpoints" / "best.json").exists()
