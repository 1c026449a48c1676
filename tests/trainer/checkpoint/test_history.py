"""What stands in a run's directory when it goes on: older exports, config.yaml and its history. The method is a toy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trainer.toy import STEPS, Killed, losses, toy
from trainer.checkpoint.exports import set_exports_aside
from trainer.config.objective import Perceptual
from trainer.config.running import RollbackConfig
from trainer.config.train import TrainConfig
from trainer.loop import Stopped
from trainer.run import run


def changed(config: TrainConfig, **settings: Any) -> TrainConfig:
    """The same run with another learning rate or other settings."""
    optimizer = replace(config.optim.generator, lr=settings.pop("lr", config.optim.generator.lr))
    return replace(config, optim=replace(config.optim, generator=optimizer), **settings)


def history(config: TrainConfig) -> list[dict[str, Any]]:
    """The rows of config_history.jsonl without their times."""
    file = Path(config.output) / "config_history.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    assert all(row.pop("time") for row in rows)
    return rows


def saved_lr(config: TrainConfig) -> float:
    """The learning rate in config.yaml."""
    tree = yaml.safe_load((Path(config.output) / "config.yaml").read_text())
    return float(tree["optim"]["generator"]["lr"])


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file of a run but its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_an_export_names_its_step_and_makes_room_when_the_run_goes_on(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(config.output)
    run(config, toy())
    (output / "model_ema").mkdir()  # as a run leaves it that had a moving average
    (output / "model_ema" / "provenance.json").write_text((output / "model" / "provenance.json").read_text())
    value = (output / "model" / "value.txt").read_text()
    run(replace(config, steps=STEPS + 4), toy(stop_at=STEPS + 2))
    aside = output / f"model-step-{STEPS:08d}"
    assert (aside / "value.txt").read_text() == value
    assert json.loads((aside / "provenance.json").read_text())["step"] == STEPS
    assert sorted(path.name for path in output.glob("model*")) == [aside.name, f"model_ema-step-{STEPS:08d}"]
    assert f"{output / 'model'} is now {aside}, because the run has gone on" in capsys.readouterr().out
    run(replace(config, steps=STEPS + 4), toy())
    said = json.loads((output / "model" / "provenance.json").read_text())
    assert (said["step"], said["settings"]["steps"], said["weights"]) == (STEPS + 4, STEPS + 4, "raw")


def test_an_export_that_does_not_name_its_step_is_set_aside_as_of_an_unknown_one(tmp_path: Path) -> None:
    """An earlier version of this program, or somebody by hand, has put it there; the average does name its step."""
    for name in ("model", "model_ema"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    (tmp_path / "model_ema" / "provenance.json").write_text('{"step": 600}')
    moved = set_exports_aside(tmp_path)
    assert [(old.name, new.name) for old, new in moved] == [
        ("model", "model-of-unknown-step"),
        ("model_ema", "model_ema-step-00000600"),
    ]
    assert [(new / "model.safetensors").read_text() for _, new in moved] == ["model", "model_ema"]
    assert set(tmp_path.iterdir()) == {new for _, new in moved}


@pytest.mark.parametrize("text", ["{", '{"weights": "raw"}', '{"step": "sixty"}', "[]"])
def test_an_export_with_a_damaged_provenance_does_not_end_the_run_that_goes_on(tmp_path: Path, text: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "provenance.json").write_text(text)
    assert [new.name for _, new in set_exports_aside(tmp_path)] == ["model-of-unknown-step"]
    assert (tmp_path / "model-of-unknown-step" / "provenance.json").read_text() == text


def test_a_finished_run_that_is_refused_or_killed_before_a_step_keeps_its_export(config: TrainConfig) -> None:
    run(config, toy())
    before = everything(Path(config.output) / "model")
    with pytest.raises(Killed):
        run(replace(config, steps=STEPS + 4), toy(dies_at_call=1))
    assert everything(Path(config.output) / "model") == before


def test_the_settings_of_a_start_are_written_when_a_step_was_done_with_them(config: TrainConfig) -> None:
    output = Path(config.output)
    with pytest.raises(Killed):
        run(config, toy(dies_at_call=1))
    assert not (output / "config.yaml").exists()
    run(config, toy(stop_at=4))
    assert history(config) == []
    with pytest.raises(Killed):
        run(changed(config, lr=0.25), toy(dies_at_call=1))
    assert (saved_lr(config), history(config)) == (config.optim.generator.lr, [])
    run(changed(config, lr=0.25), toy(stop_at=6))
    row = {"step": 5, "changed": {"optim.generator.lr": [config.optim.generator.lr, 0.25]}}
    assert (saved_lr(config), history(config)) == (0.25, [row])
    run(changed(config, lr=0.25), toy(stop_at=7))
    assert history(config) == [row]
    run(config, toy())
    back = {"step": 8, "changed": {"optim.generator.lr": [0.25, config.optim.generator.lr]}}
    assert history(config) == [row, back]


def test_steps_that_are_done_again_have_the_settings_of_the_second_time(config: TrainConfig) -> None:
    """Checkpoints after steps 4 and 8: the change after step 5 is lost with that step."""
    run(config, toy(stop_at=4))
    with pytest.raises(Killed):
        run(changed(config, lr=0.25), toy(dies_at_call=3))
    assert [row["step"] for row in history(config)] == [5]
    run(config, toy())
    assert (saved_lr(config), history(config)) == (config.optim.generator.lr, [])


def test_a_rollback_past_a_change_of_settings_is_in_the_history(config: TrainConfig) -> None:
    """Losses are logged every two steps: step 10 is the last good one, and step 8 has the checkpoint before it."""
    config = replace(config, steps=20, rollback=RollbackConfig(factor=10, window=4, patience=2))
    config.checkpoint = replace(config.checkpoint, every=8, keep=9)
    config.telemetry = replace(config.telemetry, log_every=2)
    run(config, toy(stop_at=8))
    run(changed(config, lr=0.25), toy(stop_at=11))
    assert [row["step"] for row in history(config)] == [9]
    assert run(changed(config, lr=0.125), toy(bad=[12, 13, 14])) is Stopped.FINISHED
    rows = [json.loads(line) for line in (Path(config.output) / "rollbacks.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [8]
    assert history(config) == [{"step": 9, "changed": {"optim.generator.lr": [config.optim.generator.lr, 0.125]}}]


def test_a_changed_objective_is_said_aloud(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run(config, toy(stop_at=4))
    loss = replace(config.loss, perceptual=Perceptual.st_lpips, kl_weight=0.5)
    capsys.readouterr()
    run(changed(config, loss=loss, lr=0.25), toy(stop_at=6))
    printed = capsys.readouterr().out
    assert "settings that change after step 4: " in printed
    assert "loss.perceptual: none -> st_lpips" in printed
    warning = "loss.kl_weight, loss.perceptual changed what is learnt: losses up to step 4 and after it do not compare"
    assert f"warning: {warning}" in printed
    run(changed(config, loss=loss, lr=0.125), toy(stop_at=7))
    assert "changed what is learnt" not in capsys.readouterr().out


def test_other_settings_have_no_effect_on_a_finished_run_and_it_says_so(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, toy())
    before = everything(Path(config.output))
    capsys.readouterr()
    assert run(changed(config, lr=0.25), toy()) is Stopped.FINISHED
    printed = capsys.readouterr().out
    assert f"warning: the run has finished its {STEPS} steps, so these settings had no effect" in printed
    assert f"optim.generator.lr: {config.optim.generator.lr} -> 0.25. Raise steps to train on" in printed
    assert everything(Path(config.output)) == before
    capsys.readouterr()
    assert run(config, toy()) is Stopped.FINISHED
    assert "no effect" not in capsys.readouterr().out
    assert everything(Path(config.output)) == before
    assert losses(config)[-1][0] == STEPS


def test_an_export_that_was_cut_off_is_made_by_the_next_start(config: TrainConfig) -> None:
    run(config, toy())
    model = Path(config.output) / "model"
    for path in model.iterdir():
        path.unlink()
    model.rmdir()
    run(config, toy())
    assert sorted(path.name for path in model.iterdir()) == ["provenance.json", "value.txt"]


def test_settings_are_written_in_utf_8_whatever_the_locale_is(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without a named encoding is in that of the locale; a run could not read it where that is Latin-1."""
    write_text = Path.write_text

    def in_latin_1(path: Path, text: str, encoding: str | None = None, **others: Any) -> int:
        return write_text(path, text, encoding or "latin-1", **others)

    monkeypatch.setattr(Path, "write_text", in_latin_1)
    config.output += "-l\u00e4uft"
    assert run(config, toy(stop_at=2)) is Stopped.PREEMPTED
    assert run(config, toy()) is Stopped.FINISHED
    tree = yaml.safe_load((Path(config.output) / "config.yaml").read_bytes())
    assert tree["output"] == config.output
