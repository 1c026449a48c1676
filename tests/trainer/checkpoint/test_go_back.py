"""checkpoint.resume=STEP: the run goes back, once, and what it leaves behind keeps its bytes. The method is a toy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.numbers import contents, flip_bit
from tests.trainer.toy import STEPS, Killed, checkpoints, losses, rows, toy
from trainer.config.train import TrainConfig
from trainer.loop import Stopped
from trainer.run import Refused, run


def back_to(config: TrainConfig, step: int) -> TrainConfig:
    return replace(config, checkpoint=replace(config.checkpoint, resume=str(step)))


@pytest.fixture
def finished(config: TrainConfig) -> TrainConfig:
    """A run with checkpoints after steps 4, 8 and 9, the last."""
    assert run(config, toy()) is Stopped.FINISHED
    assert checkpoints(config) == ["step-00000004", "step-00000008", "step-00000009"]
    return config


def test_the_run_goes_back_and_loses_no_checkpoint(
    finished: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(finished.output) / "checkpoints"
    later = {name: contents(folder / name) for name in ("step-00000008", "step-00000009")}
    with pytest.raises(Killed):
        run(back_to(finished, 4), toy(dies_at_call=3))
    assert losses(finished) == undisturbed[:6]  # the rows of later steps are gone, as after a kill
    aside = ["abandoned-step-00000008", "abandoned-step-00000009"]
    assert checkpoints(finished) == [*aside, "step-00000004"]
    assert {name: contents(folder / f"abandoned-{name}") for name in later} == later
    assert f"is now {folder / aside[0]}, because the run goes back to step 4" in capsys.readouterr().out
    assert run(back_to(finished, 4), toy(dies_at_call=99)) is Stopped.FINISHED
    assert losses(finished) == undisturbed
    assert checkpoints(finished) == [*aside, "step-00000004", "step-00000008", "step-00000009"]


def test_the_same_command_goes_on_from_what_it_has_done_since(
    finished: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    again = back_to(finished, 4)
    run(again, toy(stop_at=6))
    capsys.readouterr()
    assert run(again, toy()) is Stopped.FINISHED
    printed = capsys.readouterr().out
    assert "the run has gone back to step 4 before (checkpoint.resume), and goes on from what it has done" in printed
    assert "going on after step 6, from" in printed
    assert losses(finished) == undisturbed
    assert [row["step"] for row in rows(finished)] == list(range(1, STEPS + 1))
    run(back_to(finished, 8), toy(stop_at=9))  # to another step it goes back all the same
    assert checkpoints(finished)[:3] == [
        "abandoned-step-00000008",
        "abandoned-step-00000009",
        "abandoned-step-00000009-2",
    ]


def test_a_killed_going_back_is_repeated_by_the_same_command(
    finished: TrainConfig, undisturbed: list[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when one of two later checkpoints was renamed."""
    from trainer.checkpoint import checkpoints as module

    real = module.set_aside

    def dies(directory: Path, why: str) -> Path:
        real(directory, why)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "set_aside", dies)
        with pytest.raises(Killed):
            run(back_to(finished, 4), toy())
    assert checkpoints(finished) == ["abandoned-step-00000008", "step-00000004", "step-00000009"]
    assert run(back_to(finished, 4), toy()) is Stopped.FINISHED
    assert losses(finished) == undisturbed


def test_a_step_that_is_not_there_or_is_damaged_is_refused_and_nothing_changes(finished: TrainConfig) -> None:
    with pytest.raises(Refused, match=r"checkpoint\.resume=5: .* has no checkpoint of that step; there are 4, 8, 9"):
        run(back_to(finished, 5), toy())
    flip_bit(Path(finished.output) / "checkpoints" / "step-00000004" / "toy.pt")
    with pytest.raises(Refused, match=r"checkpoint\.resume=4: that checkpoint is damaged: .*toy\.pt has another"):
        run(back_to(finished, 4), toy())
    with pytest.raises(Refused, match=r"belongs to a run with other settings \(seed: 0 -> 5\)"):
        run(replace(back_to(finished, 8), seed=5), toy())
    assert checkpoints(finished) == ["step-00000004", "step-00000008", "step-00000009"]


def test_a_fresh_output_has_no_step_to_go_back_to(config: TrainConfig) -> None:
    with pytest.raises(Refused, match=r"checkpoint\.resume=4: .* has no checkpoint of that step; there is none"):
        run(back_to(config, 4), toy())


def test_later_checkpoints_in_the_store_are_not_replaced(config: TrainConfig, tmp_path: Path) -> None:
    config.checkpoint = replace(config.checkpoint, upload=str(tmp_path / "remote"))
    run(config, toy())
    before = contents(tmp_path / "remote")
    with pytest.raises(Refused, match=r"remote holds later checkpoints up to step-00000009, .* another checkpoint\.up"):
        run(back_to(config, 4), toy())
    assert contents(tmp_path / "remote") == before
    elsewhere = back_to(config, 4)
    elsewhere.checkpoint = replace(elsewhere.checkpoint, upload=str(tmp_path / "other"))
    run(elsewhere, toy(stop_at=6))
    assert run(elsewhere, toy()) is Stopped.FINISHED  # later ones of its own are no obstacle
    assert contents(tmp_path / "remote") == before
