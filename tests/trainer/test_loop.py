"""The loop with a method that has nothing to do with video: stopping, going on, checkpoints, what is written down."""

import errno
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.read.loader import Batch
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.data_pipeline.read.loading import break_samples, zero_video
from tests.trainer.toy import STEPS, Killed, Toy, ToyBuilder, checkpoints, losses, rows, toy
from trainer.checkpoint import background_save
from trainer.checkpoint.files import copy_and_digest
from trainer.config.train import TrainConfig
from trainer.loop import Failed, Stopped
from trainer.run import Refused, Unready, run


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_told_to_stop_and_started_again_equals_undisturbed(
    config: TrainConfig, undisturbed: list[tuple[int, float]], stop: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, toy(stop_at=stop)) is Stopped.PREEMPTED
    assert checkpoints(config)[-1] == f"step-{stop:08d}"
    assert f"stopped by SIGTERM after step {stop}, which is saved" in capsys.readouterr().out
    assert not (Path(config.output) / "model").exists()
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed
    assert [step for step, _ in undisturbed] == list(range(1, STEPS + 1))
    assert (Path(config.output) / "model" / "value.txt").exists()


def test_checkpoint_without_its_marker_is_never_used(
    config: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, toy(stop_at=6))
    newest = Path(config.output) / "checkpoints" / "step-00000006"
    (newest / "COMPLETE").unlink()
    torch.save(torch.tensor(1e9), newest / "toy.pt")
    run(config, toy())
    assert "going on after step 4" in capsys.readouterr().out
    assert losses(config) == undisturbed
    assert checkpoints(config) == ["step-00000004", "step-00000008", "step-00000009"]  # the leftover is gone


def test_keeps_the_newest_complete_checkpoints(config: TrainConfig) -> None:
    config.checkpoint.every, config.checkpoint.keep = 2, 2
    run(config, toy())
    assert checkpoints(config) == ["step-00000008", "step-00000009"]
    marker = json.loads((Path(config.output) / "checkpoints" / "step-00000009" / "COMPLETE").read_text())
    assert set(marker["files"]) == {"config.yaml", "rng-00000.pt", "state.json", "toy.pt"}


def test_finished_run_does_not_train_again(config: TrainConfig, undisturbed: list[tuple[int, float]]) -> None:
    run(config, toy())
    shutil.rmtree(Path(config.output) / "model")
    assert run(config, toy(broken_from=0)) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_damaged_checkpoint_is_passed_over_but_never_for_a_fresh_start(
    config: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, toy(stop_at=6))
    for step in (6, 4):
        capsys.readouterr()
        file = Path(config.output) / "checkpoints" / f"step-{step:08d}" / "toy.pt"
        file.write_bytes(file.read_bytes()[:-1])
        if step == 6:
            run(config, toy())
            text = capsys.readouterr().out
            assert re.search(r"warning: .*step-00000006/toy\.pt has \d+ bytes, but \d+ were written", text)
            assert "going on after step 4" in text
            assert losses(config) == undisturbed
            for name in ("step-00000008", "step-00000009"):
                (Path(config.output) / "checkpoints" / name / "COMPLETE").write_text("")
    with pytest.raises(Refused, match=r"every checkpoint .* is damaged: .*4/toy\.pt has .* nothing was changed"):
        run(config, toy())


def test_what_cannot_be_deleted_does_not_end_the_run(
    config: TrainConfig,
    undisturbed: list[tuple[int, float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NFS keeps a file that is open elsewhere, and so its directory."""
    config.checkpoint.every, config.checkpoint.keep, config.checkpoint.staging = 2, 1, ""
    real, refused, marked = shutil.rmtree, [], []

    def rmtree(path: Path) -> None:
        marked.append((Path(path) / "COMPLETE").exists())
        if Path(path).name == "step-00000002" and len(refused) < 2:
            refused.append(path)
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed
    assert len(refused) == 2
    assert marked == [False] * 6, "what is removed in part must not look complete"
    assert "step-00000002 could not be removed (Directory not empty); the next checkpoint" in capsys.readouterr().out
    assert checkpoints(config) == ["step-00000009"]


def explained(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "nonfinite.jsonl").read_text().splitlines()]


def test_too_many_skipped_steps_stop_the_run_naming_the_terms(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.optim.max_skipped = 3
    with pytest.raises(Failed, match=r"3 steps in a row up to step 6 had a non-finite loss or gradient") as failed:
        run(config, toy(broken_from=3))
    keys = explained(config)[-1]["clips"]["0"]
    assert str(failed.value).split("\n")[1:4] == [
        "  loss terms: total_loss",
        "  gradients of the toy: 1 of 2: value",
        f"  clips of rank 0: {', '.join(keys)}",
    ]
    assert f"training gave up: {failed.value}" in capsys.readouterr().err
    assert [row["step"] for row in explained(config)] == [4, 5, 6]
    assert len(keys) == 4
    assert keys != explained(config)[-2]["clips"]["0"]
    assert [(row["total_loss"] is None, row["skipped"]) for row in rows(config)][2:] == [(False, 0)] + [(True, 1)] * 3


@pytest.mark.parametrize("broken_from", [3, 5])
def test_a_run_that_gives_up_says_from_what_the_next_start_goes_on(config: TrainConfig, broken_from: int) -> None:
    """A checkpoint is saved after step 4, if training has come so far."""
    config.optim.max_skipped = 1
    with pytest.raises(Failed) as failed:
        run(config, toy(broken_from=broken_from))
    mend = "To mend it, lower the learning rate, and start again: "
    saved = f"the run goes on from {config.output}/checkpoints/step-00000004"
    assert str(failed.value).endswith(
        mend + (saved if broken_from > 4 else "the run begins anew, as nothing is saved yet")
    )


def test_log_step_averages_the_steps_since_the_last(config: TrainConfig, undisturbed: list[tuple[int, float]]) -> None:
    config.telemetry.log_every = 4
    run(config, toy())
    each = dict(undisturbed)
    assert [row["step"] for row in rows(config)] == [4, 8, 9]
    assert rows(config)[0]["total_loss"] == pytest.approx(sum(each[step] for step in (1, 2, 3, 4)) / 4)
    assert rows(config)[1]["lr_toy"] == 0.5 / 8  # the rate that step 8 used


def test_tensorboard_holds_scalars_configuration_and_moving_pictures(config: TrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.telemetry.samples_every = 4
    run(config, toy())
    events = EventAccumulator(str(Path(config.output) / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert "config/text_summary" in tags["tensors"]
    scalars = [(event.step, event.value) for event in events.Scalars("loss/total_loss")]
    assert scalars == [(row["step"], pytest.approx(row["total_loss"])) for row in rows(config)]
    assert [event.step for event in events.Scalars("checkpoint/save_seconds")] == [4, 8, 9]
    sizes = [event.value for event in events.Scalars("checkpoint/save_bytes")]
    saved = (Path(config.output) / "checkpoints" / "step-00000009").iterdir()
    assert sizes[-1] == sum(path.stat().st_size for path in saved if path.name != "COMPLETE")
    pictures = events.Images("samples_batch/0")
    assert [event.step for event in pictures] == [4, 8, 9]
    assert pictures[0].encoded_image_string.startswith(b"GIF89a")
    assert (pictures[0].height, pictures[0].width) == (128, 2 * 128 + 2)


def test_too_many_unreadable_samples_end_the_run_with_their_list(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "broken", split_into_shards(make_clips(11, frames=(9, 12)), [4]))
    (key,) = break_samples(data, [5], zero_video)
    config.data = replace(config.data, shards=str(data), max_bad_samples=0)
    with pytest.raises(Failed, match=rf"data\.max_bad_samples=0: 1 samples of {data} cannot be read:\n.*{key}"):
        run(config, toy())
    assert "training gave up: data.max_bad_samples=0: 1 samples" in capsys.readouterr().err


def test_storage_that_goes_away_ends_the_run_in_one_line_and_nothing_is_lost(
    config: TrainConfig, undisturbed: list[tuple[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a status that has it started again (Unready), and never as samples that cannot be read."""
    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    data = Path(shutil.copytree(config.data.shards, tmp_path / "mounted"))
    config.data = replace(config.data, shards=str(data), workers=1, prefetch=1, max_bad_samples=0)

    class Unmounting(Toy):
        def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
            if step == 2:
                data.rename(tmp_path / "away")
            return super().step(batch, step, observed)

    class Builder(ToyBuilder):
        def build(self, fresh: bool) -> Toy:  # type: ignore[override]
            return Unmounting(self.config, self.ranks, self.validation, self.mishaps)

    message = (
        rf"training ended after step [3-7]: {data}/shards/\S+: failed 8 times, last: .*the same command goes on from"
    )
    with pytest.raises(Unready, match=message) as ended:
        run(config, Builder)
    assert "\n" not in str(ended.value)
    (tmp_path / "away").rename(data)
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_a_run_that_breaks_off_while_a_save_is_on_its_way_gives_the_memory_back(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the disk then, so the save stays unfinished, and what it holds of the memory is of no use."""
    memory, began, go = tmp_path / "memory", threading.Event(), threading.Event()
    memory.mkdir()
    config.checkpoint.staging = str(memory)
    step = Toy.step

    def copy(source: Path, target: Path) -> dict[str, Any]:
        began.set()
        assert go.wait(60), "longer than the run lasts"
        return copy_and_digest(source, target)

    def step_beside_the_save(self: Toy, batch: Batch, number: int, observed: bool = False) -> dict[str, Tensor]:
        assert number < 4 or began.wait(60)
        return step(self, batch, number, observed)

    monkeypatch.setattr(background_save, "copy_and_digest", copy)
    monkeypatch.setattr(Toy, "step", step_beside_the_save)
    with pytest.raises(Killed):
        run(config, toy(dies_at_call=6))
    left = list(memory.iterdir())
    go.set()
    assert left == []
