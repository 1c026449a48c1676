"""The loop with a method that has nothing to do with video: stopping, going on, checkpoints, what is written down."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.dataset import Batch, ClipLoader, Position
from model.lpips import LPIPS
from tests.data_pipeline.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from trainer import loop
from trainer.config import Resume, TrainConfig
from trainer.distributed import Ranks
from trainer.loop import Failed, Refused, Stopped
from trainer.nonfinite import Gradients
from trainer.rollback import RollbackConfig
from trainer.validation import ValidationConfig

STEPS = 9


class Toy:
    """Follows the mean pixel with momentum and torch's global noise: every kind of state a checkpoint must carry."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        told_at: int | None,
        broken_from: int | None,
        bad: Collection[int],
        dies_at_call: int | None,
    ) -> None:
        self.facts = {"tokens_per_clip": 1.0, "flops_per_clip": 1.0}
        self.told_at, self.broken_from = told_at, broken_from
        self.bad, self.calls_left = bad, dies_at_call
        self.value = torch.zeros(())
        torch.manual_seed(config.seed)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if step + 1 == self.told_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise Killed
        self.value = 0.9 * self.value + batch.video.float().mean() + torch.randn(())
        if batches_read(batch.position) in self.bad:
            self.value = self.value + 1e5
        broken = self.broken_from is not None and step >= self.broken_from
        loss = self.loss = self.value * (torch.nan if broken else 1.0)
        return {"total_loss": loss, "steady": torch.ones(()), "skipped": torch.tensor(float(broken))}

    def schedules(self, step: int) -> dict[str, float]:
        return {"lr_toy": 0.5 / (1 + step)}

    def pictures(self, batch: Batch, count: int) -> Tensor:
        return batch.video[:count].permute(0, 2, 3, 4, 1)[:, None].repeat(1, 2, 1, 1, 1, 1)

    def gradients(self) -> dict[str, Gradients]:
        return {"toy": Gradients(["value", "bias"], torch.tensor([bool(self.loss.isfinite()), True]))}

    @contextmanager
    def evaluating(self, ema: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        torch.manual_seed(99)  # what a careless method would do: the pass has to put the generators back
        yield lambda video: (video + self.value.abs() / 100).clamp(0, 1)

    def save(self, directory: Path) -> None:
        torch.save(self.value, directory / "toy.pt")

    def load(self, directory: Path) -> None:
        self.value = torch.load(directory / "toy.pt", weights_only=True)

    def export(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "value.txt").write_text(str(self.value.item()))


class Killed(BaseException):
    """The end of the process, as far as the loop can tell."""


def toy(
    told_at: int | None = None,
    broken_from: int | None = None,
    bad: Collection[int] = (),
    dies_at_call: int | None = None,
) -> Callable[[TrainConfig, Ranks], Toy]:
    """
    Args:
        told_at: step in which it is told to stop.
        broken_from: first step with a loss of NaN.
        bad: batches, by number from 1 on, that blow the value up.
        dies_at_call: call of `step` that ends the process.
    """
    return lambda config, ranks: Toy(config, ranks, told_at, broken_from, bad, dies_at_call)


def batches_read(position: Position) -> int:
    """How many batches have been read up to a position: of the 11 clips, 8 make the 2 batches of an epoch."""
    return position.epoch * 2 + position.consumed // 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), split_into_shards(make_clips(11, frames=(9, 12)), [4]))


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A run leaves the variables of its process group behind."""
    kept = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def config(data: Path, tmp_path: Path) -> TrainConfig:
    words = [f"data.shards={data}", f"steps={STEPS}", "data.workers=0", "data.shuffle_window=4", "checkpoint.every=4"]
    return tiny_config(str(tmp_path / "run"), *words, "telemetry.log_every=1", "telemetry.samples_every=0")


def rows(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def explained(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "nonfinite.jsonl").read_text().splitlines()]


def losses(config: TrainConfig) -> list[tuple[int, float]]:
    return [(row["step"], row["total_loss"]) for row in rows(config)]


def checkpoints(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir())


@pytest.fixture
def undisturbed(config: TrainConfig, tmp_path: Path) -> list[tuple[int, float]]:
    other = replace(config, output=str(tmp_path / "undisturbed"))
    assert loop.run(other, toy()) is Stopped.FINISHED
    return losses(other)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_told_to_stop_and_started_again_equals_undisturbed(
    config: TrainConfig, undisturbed: list[tuple[int, float]], stop: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loop.run(config, toy(told_at=stop)) is Stopped.PREEMPTED
    assert checkpoints(config)[-1] == f"step-{stop:08d}"
    assert f"stopped by SIGTERM after step {stop}, which is saved" in capsys.readouterr().out
    assert not (Path(config.output) / "model").exists()
    assert loop.run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed
    assert [step for step, _ in undisturbed] == list(range(1, STEPS + 1))
    assert (Path(config.output) / "model" / "value.txt").exists()


def test_checkpoint_without_its_marker_is_never_used(
    config: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    loop.run(config, toy(told_at=6))
    newest = Path(config.output) / "checkpoints" / "step-00000006"
    (newest / "COMPLETE").unlink()
    torch.save(torch.tensor(1e9), newest / "toy.pt")
    loop.run(config, toy())
    assert "going on after step 4" in capsys.readouterr().out
    assert losses(config) == undisturbed
    assert checkpoints(config) == ["step-00000004", "step-00000008", "step-00000009"]  # the leftover is gone


def test_keeps_the_newest_complete_checkpoints(config: TrainConfig) -> None:
    config.checkpoint.every, config.checkpoint.keep = 2, 2
    loop.run(config, toy())
    assert checkpoints(config) == ["step-00000008", "step-00000009"]
    marker = json.loads((Path(config.output) / "checkpoints" / "step-00000009" / "COMPLETE").read_text())
    assert set(marker["files"]) == {"config.yaml", "rng-00000.pt", "state.json", "toy.pt"}


def test_finished_run_does_not_train_again(config: TrainConfig, undisturbed: list[tuple[int, float]]) -> None:
    loop.run(config, toy())
    shutil.rmtree(Path(config.output) / "model")
    assert loop.run(config, toy(broken_from=0)) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_damaged_checkpoint_is_passed_over_but_never_for_a_fresh_start(
    config: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    loop.run(config, toy(told_at=6))
    for step in (6, 4):
        capsys.readouterr()
        file = Path(config.output) / "checkpoints" / f"step-{step:08d}" / "toy.pt"
        file.write_bytes(file.read_bytes()[:-1])
        if step == 6:
            loop.run(config, toy())
            text = capsys.readouterr().out
            assert re.search(r"warning: .*step-00000006/toy\.pt has \d+ bytes, but \d+ were written", text)
            assert "going on after step 4" in text
            assert losses(config) == undisturbed
            for name in ("step-00000008", "step-00000009"):
                (Path(config.output) / "checkpoints" / name / "COMPLETE").write_text("")
    with pytest.raises(Refused, match=r"every checkpoint .* is damaged: .*4/toy\.pt has .* nothing was changed"):
        loop.run(config, toy())


def test_other_model_or_data_order_is_refused_with_the_differing_keys(config: TrainConfig) -> None:
    loop.run(config, toy(told_at=2))
    changed = replace(
        config,
        seed=5,
        model=replace(config.model, depth=3),
        data=replace(config.data, lanes=2, prefetch=7),
        optim=replace(config.optim, clip=9.0),
    )
    with pytest.raises(Refused, match=r"\(data\.lanes: 0 -> 2, model\.depth: 2 -> 3, seed: 0 -> 5\)"):
        loop.run(changed, toy())


def test_other_dataset_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    loop.run(config, toy(told_at=2))
    other = write_dataset(tmp_path / "other", split_into_shards(make_clips(13, frames=(9,)), [5]))
    with pytest.raises(Refused, match="the saved position belongs to other data"):
        loop.run(replace(config, data=replace(config.data, shards=str(other))), toy())


def test_resume_never_refuses_an_output_with_a_checkpoint(config: TrainConfig) -> None:
    loop.run(config, toy(told_at=2))
    config.checkpoint.resume = Resume.never
    with pytest.raises(Refused, match=r"checkpoint\.resume=never; choose another output"):
        loop.run(config, toy())


def test_too_many_skipped_steps_stop_the_run_naming_the_terms(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.optim.max_skipped = 3
    with pytest.raises(Failed, match=r"3 steps in a row up to step 6 had a non-finite loss or gradient") as failed:
        loop.run(config, toy(broken_from=3))
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


def test_log_step_averages_the_steps_since_the_last(config: TrainConfig, undisturbed: list[tuple[int, float]]) -> None:
    config.telemetry.log_every = 4
    loop.run(config, toy())
    each = dict(undisturbed)
    assert [row["step"] for row in rows(config)] == [4, 8, 9]
    assert rows(config)[0]["total_loss"] == pytest.approx(sum(each[step] for step in (1, 2, 3, 4)) / 4)
    assert rows(config)[1]["lr_toy"] == 0.5 / 8  # the rate that step 8 used


def test_tensorboard_holds_scalars_configuration_and_moving_pictures(config: TrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.telemetry.samples_every = 4
    loop.run(config, toy())
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
    pictures = events.Images("samples/0")
    assert [event.step for event in pictures] == [4, 8, 9]
    assert pictures[0].encoded_image_string.startswith(b"GIF89a")
    assert (pictures[0].height, pictures[0].width) == (128, 2 * 128 + 2)


def test_saved_configuration_repeats_the_run(config: TrainConfig, undisturbed: list[tuple[int, float]]) -> None:
    from trainer.config_loader import load_config

    loop.run(config, toy())
    again = load_config(TrainConfig, [Path(config.output) / "config.yaml"], [f"output={config.output}-again"])
    assert replace(again, output=config.output) == config
    loop.run(again, toy())
    assert losses(again) == undisturbed


def test_global_batch_that_ranks_cannot_share_is_refused(config: TrainConfig) -> None:
    config.micro_batch = 3
    with pytest.raises(Refused, match=r"data\.global_batch=4 on 1 ranks is 4 clips a rank, .*micro_batch=3"):
        loop.run(config, toy())


SPIKY = 32


@pytest.fixture
def spiky(config: TrainConfig) -> TrainConfig:
    config.rollback = RollbackConfig(factor=20.0, window=5, patience=2)
    config.steps, config.telemetry.tensorboard = SPIKY, False
    return config


@pytest.fixture
def never_seen(spiky: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Losses of a run without rollback whose loader goes from batch 12 straight to batch 16."""
    original = ClipLoader.from_position

    def skipping(self: ClipLoader, position: Position | None = None) -> Iterator[Batch]:
        for batch in original(self, position):
            yield batch
            if batches_read(batch.position) == 12:
                break
        yield from original(self, Position(7, 4))

    monkeypatch.setattr(ClipLoader, "from_position", skipping)
    other = replace(spiky, output=str(tmp_path / "never seen"), rollback=RollbackConfig())
    assert loop.run(other, toy()) is Stopped.FINISHED
    monkeypatch.undo()
    return losses(other)


def decisions(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "rollbacks.jsonl").read_text().splitlines()]


def logged(config: TrainConfig) -> list[tuple[int, float]]:
    return [(row["step"], row["total_loss"]) for row in rows(config) if "event" not in row]


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
            loop.run(spiky, toy(bad={14}, dies_at_call=call))
    assert loop.run(spiky, toy(bad={14})) is Stopped.FINISHED
    assert logged(spiky) == never_seen, why
    assert [step for step, _ in never_seen] == list(range(1, SPIKY + 1))
    (decision,) = decisions(spiky)
    assert (decision["step"], decision["found"]) == (12, 15)
    (row,) = [row for row in rows(spiky) if row.get("event") == "rollback"]
    assert {key: row[key] for key in decision} == decision


def test_checkpoints_of_the_spike_are_removed_here_and_in_the_store(
    spiky: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With more patience the spike is found after step 17, when the checkpoint of step 16 is of the spike."""
    store = tmp_path / "store"
    spiky.rollback.patience, spiky.checkpoint.upload = 4, str(store)
    with pytest.raises(Killed):
        loop.run(spiky, toy(bad={14}, dies_at_call=17))
    assert checkpoints(spiky)[-1] == "step-00000016"
    with pytest.raises(Killed):
        loop.run(spiky, toy(bad={14}, dies_at_call=2))  # step 17, and step 13 again
    assert checkpoints(spiky)[-1] == "step-00000012"
    assert sorted(path.parent.name for path in store.rglob("COMPLETE"))[-1] == "step-00000012"
    assert not list(store.glob("step-00000016/*"))
    capsys.readouterr()
    assert loop.run(spiky, toy(bad={14})) is Stopped.FINISHED
    assert "going on after step 12" in capsys.readouterr().out
    assert [(row["step"], row["found"]) for row in decisions(spiky)] == [(12, 17)]
    assert max(loss for _, loss in logged(spiky)) < 1e4


def test_a_rollback_is_announced_and_shown(spiky: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spiky.telemetry.tensorboard, spiky.steps = True, 18
    loop.run(spiky, toy(bad={14}))
    line = "back to step 12, and on with the batches after step 15's"
    assert line in capsys.readouterr().out
    events = EventAccumulator(str(Path(spiky.output) / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    (text,) = events.Tensors("rollback/text_summary")
    assert line in text.tensor_proto.string_val[0].decode()
    assert [event.step for event in events.Scalars("loss/total_loss")] == list(range(1, 19))


def test_rollbacks_are_limited(spiky: TrainConfig) -> None:
    spiky.rollback.limit = 2
    with pytest.raises(Failed, match=r"rollback\.limit=2 rollbacks have been made \(.*rollbacks\.jsonl lists them\)"):
        loop.run(spiky, toy(bad=range(14, 1000)))
    assert [(row["step"], row["epoch"] * 2 + row["consumed"] // 4) for row in decisions(spiky)] == [(12, 15), (12, 17)]


def test_a_spike_before_the_first_checkpoint_stops_the_run(spiky: TrainConfig) -> None:
    spiky.checkpoint.every = 100
    with pytest.raises(Failed, match=r"spikes after step 13 .* there is no checkpoint from before it"):
        loop.run(spiky, toy(bad={14}))


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    clips = make_clips(11, frames=(9, 12)) + make_clips(3, frames=(9, 17), split="val")
    return str(write_dataset(tmp_path / "with val", split_into_shards(clips, [4])))


def test_validation_changes_nothing_but_what_is_written(config: TrainConfig, held_out: str, tmp_path: Path) -> None:
    config = replace(config, data=replace(config.data, shards=held_out))
    loop.run(config, toy())
    LPIPS().save(tmp_path / "lpips.safetensors")  # of random weights, as good as any here
    other = replace(config, output=str(tmp_path / "validated"), validation=ValidationConfig(every=3, clips=100))
    other.loss = replace(config.loss, lpips_weights=str(tmp_path / "lpips.safetensors"))
    loop.run(other, toy())
    assert logged(other) == losses(config)
    found = [row for row in rows(other) if row.get("event") == "validation"]
    assert [(row["step"], row["val_windows"], row["val_unreadable"]) for row in found] == [(n, 4, 0) for n in (3, 6, 9)]
    assert all(0 < row["val_psnr"] < 20 and row["val_ssim"] < 1 and row["val_lpips"] != 0 for row in found)


def test_validation_without_held_out_clips_is_refused(config: TrainConfig) -> None:
    config.validation = ValidationConfig(every=3)
    with pytest.raises(Refused, match=r"validation\.every=3 wants clips of the split 'val': .*set validation\.every=0"):
        loop.run(config, toy())
    assert not Path(config.output).exists()
