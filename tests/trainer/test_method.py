"""The loop trains a method that shares nothing with VidTwin's (second_method.py): the door for the next method."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trainer.second_method import Fit, FitBuilder, FitConfig, Points
from tests.trainer.toy import Killed
from trainer.config.loader import load_config
from trainer.loop import Stopped
from trainer.run import Refused, run
from trainer.telemetry.journal import read_rows

STEPS = 40
WORDS = (f"steps={STEPS}", "precision=fp32", "checkpoint.every=8", "telemetry.log_every=1", "validation.every=10")


def configured(output: Path, *words: str) -> FitConfig:
    return load_config(FitConfig, [], [f"output={output}", *WORDS, "telemetry.samples_every=0", *words])


def rows(config: FitConfig, event: str | None = None) -> list[dict[str, Any]]:
    return [row for row in read_rows(Path(config.output) / "metrics.jsonl") if row.get("event") == event]


def losses(config: FitConfig) -> list[float]:
    return [row["total_loss"] for row in rows(config)]


@pytest.fixture
def whole(environment: None, tmp_path: Path) -> FitConfig:
    """A run from its beginning to its end."""
    config = configured(tmp_path / "whole")
    assert run(config, FitBuilder) is Stopped.FINISHED
    return config


def test_it_learns_and_is_exported(whole: FitConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert losses(whole)[-1] < 0.05 * losses(whole)[0]
    line = torch.load(Path(whole.output) / "model" / "line.pt", weights_only=True)
    at_one = line["weight"].item() + line["bias"].item()
    assert at_one == pytest.approx(whole.slope, abs=0.3)
    assert [row["text"] for row in rows(whole, "data")] == ["points on a line of slope 3.0"]
    assert [row["step"] for row in rows(whole, "validation")] == [10, 20, 30, 40]
    assert rows(whole, "validation")[-1]["val_error"] < rows(whole, "validation")[0]["val_error"]


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_started_again_it_has_the_same_numbers(
    whole: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Stopped on request it saves first; killed it goes on from the checkpoint before."""
    config, usual = configured(tmp_path / "again"), Fit.step

    def ending(fit: Fit, batch: Points, step: int, observed: bool) -> dict[str, torch.Tensor]:
        if step == 13 and end == "killed":
            raise Killed
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(fit, batch, step, observed)

    monkeypatch.setattr(Fit, "step", ending)
    if end == "killed":
        with pytest.raises(Killed):
            run(config, FitBuilder)
    else:
        assert run(config, FitBuilder) is Stopped.PREEMPTED
    monkeypatch.undo()
    os.environ["DS_ACCELERATOR"] = "cpu"
    assert run(config, FitBuilder) is Stopped.FINISHED
    assert losses(config) == losses(whole)
    assert rows(config, "validation") == rows(whole, "validation")


def test_pictures_and_validation_draw_random_numbers_and_leave_training_alone(whole: FitConfig, tmp_path: Path) -> None:
    config = configured(tmp_path / "shown", "telemetry.samples_every=8", "validation.every=3")
    assert run(config, FitBuilder) is Stopped.FINISHED
    assert losses(config) == losses(whole)
    events = EventAccumulator(str(Path(config.output) / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("errors/0")] == [8, 16, 24, 32, 40]


def test_its_own_settings_may_change_and_the_seed_may_not(whole: FitConfig) -> None:
    longer = configured(Path(whole.output), f"steps={STEPS + 2}", "lr=0.05")
    assert run(longer, FitBuilder) is Stopped.FINISHED
    assert losses(longer)[:STEPS] == losses(whole)[:STEPS]
    with pytest.raises(Refused, match=r"\(seed: 0 -> 1\)"):
        run(configured(Path(whole.output), "seed=1"), FitBuilder)
