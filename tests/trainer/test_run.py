"""What a run is refused for before it trains, and what it goes on with; the method is a toy (see toy.py)."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from data_pipeline.read.loader import Batch, ClipLoader
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.toy import STEPS, Toy, ToyBuilder, losses, rows, toy
from trainer import distributed
from trainer.checkpoint.upload import Remote
from trainer.config.learning import Freeze
from trainer.config.running import NEVER, ClipValidationConfig, RollbackConfig, WatchdogConfig
from trainer.config.train import TrainConfig
from trainer.faults.watchdog import Watchdog
from trainer.loop import Failed, Stopped
from trainer.run import Refused, run


def looking(look: Callable[[], None]) -> type[ToyBuilder]:
    """The builder of a toy that looks around before each of its steps."""

    class Looking(Toy):
        def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
            look()
            return super().step(batch, step, observed)

    class Builder(ToyBuilder):
        def build(self, fresh: bool) -> Toy:  # type: ignore[override]
            return Looking(self.config, self.ranks, self.validation, self.mishaps)

    return Builder


def test_other_model_or_data_order_is_refused_with_the_differing_keys(config: TrainConfig) -> None:
    run(config, toy(stop_at=2))
    changed = replace(
        config,
        seed=5,
        model=replace(config.model, depth=3),
        data=replace(config.data, lanes=2, prefetch=7),
        optim=replace(config.optim, clip=9.0),
    )
    with pytest.raises(Refused, match=r"\(data\.lanes: 0 -> 2, model\.depth: 1 -> 3, seed: 0 -> 5\)"):
        run(changed, toy())


def test_another_discriminator_or_frozen_part_is_another_run(config: TrainConfig) -> None:
    run(config, toy(stop_at=2))
    with pytest.raises(Refused, match=r"\(gan\.weight: 0\.5 -> 0\.0\)"):
        run(replace(config, gan=replace(config.gan, weight=0.0)), toy())
    with pytest.raises(Refused, match=r"\(freeze: none -> encoder\)"):
        run(replace(config, freeze=Freeze.encoder, init_from="model"), toy())


@pytest.mark.parametrize("word", ["workers=1", "prefetch=3", "timeout_s=99", "cache_bytes=123", "max_bad_samples=7"])
def test_how_the_data_are_read_may_change(
    config: TrainConfig, undisturbed: list[tuple[int, float]], tmp_path: Path, word: str
) -> None:
    run(config, toy(stop_at=4))
    key, _, value = word.partition("=")
    changed: dict[str, Any] = {key: int(value), "cache_dir": str(tmp_path / "cache")}
    run(replace(config, data=replace(config.data, **changed), gan=replace(config.gan, weight=0.25)), toy())
    assert losses(config) == undisturbed


def test_settings_that_a_checkpoint_does_not_know_had_their_defaults(
    config: TrainConfig, undisturbed: list[tuple[int, float]]
) -> None:
    """A run goes on with a version of this program that has more settings than the one that began it."""
    run(config, toy(stop_at=4))
    directory = Path(config.output) / "checkpoints" / "step-00000004"
    text = (directory / "config.yaml").read_text()
    older = "".join(
        line
        for line in text.splitlines(True)
        if not line.lstrip().startswith(("frame_counts", "frame_shares", "min_frames"))
    )
    assert older.count("\n") == text.count("\n") - 3
    (directory / "config.yaml").write_text(older)
    marker = json.loads((directory / "COMPLETE").read_text())
    data = older.encode()
    marker["files"]["config.yaml"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "COMPLETE").write_text(json.dumps(marker))
    with pytest.raises(Refused, match=r"\(model\.min_frames: 0 -> 2\)"):
        run(replace(config, model=replace(config.model, min_frames=2)), toy())
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_another_init_from_is_said_to_have_no_effect(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run(replace(config, init_from="/models/a"), toy(stop_at=2))
    run(replace(config, init_from=""), toy(stop_at=4))
    run(replace(config, init_from=""), toy(stop_at=5))
    assert "init_from=" not in capsys.readouterr().out
    run(replace(config, init_from="/models/b"), toy(stop_at=6))
    assert "warning: init_from=/models/b is not looked at, because the run goes on from" in capsys.readouterr().out


@pytest.mark.parametrize("term", ["loss", "late_loss"])
def test_a_loss_that_is_not_logged_at_every_step_cannot_be_watched_for_spikes(config: TrainConfig, term: str) -> None:
    watching = replace(config, rollback=RollbackConfig(factor=10, term=term))
    with pytest.raises(Refused, match=rf"rollback\.term={term} is not logged .* choose one of total_loss, steady"):
        run(watching, toy())
    assert not (Path(config.output) / "metrics.jsonl").exists()


def test_fewer_steps_than_were_done_are_refused(config: TrainConfig) -> None:
    run(config, toy(stop_at=6))
    with pytest.raises(Refused, match=r"steps=5 is less than the 6 steps that .*step-00000006 has done"):
        run(replace(config, steps=5), toy())
    assert f"steps: {STEPS}\n" in (Path(config.output) / "config.yaml").read_text()


def test_other_dataset_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    run(config, toy(stop_at=2))
    other = write_dataset(tmp_path / "other", split_into_shards(make_clips(13, frames=(9,)), [5]))
    with pytest.raises(Refused, match="the saved position belongs to other data"):
        run(replace(config, data=replace(config.data, shards=str(other))), toy())


def test_what_is_left_out_of_the_data_is_said_once_a_start_and_written_down(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 11 + 2 + 3 clips: the training takes those of its split with 8 frames and more, and so does the validation."""
    clips = make_clips(11, frames=(9, 12)) + make_clips(2, frames=(5,)) + make_clips(3, frames=(9,), split="val")
    data = write_dataset(tmp_path / "some short", split_into_shards(clips, [4]))
    config.data, config.validation = replace(config.data, shards=str(data)), ClipValidationConfig(every=5)
    assert run(config, toy(stop_at=2)) is Stopped.PREEMPTED
    assert run(config, toy()) is Stopped.FINISHED
    left_out = "3 samples of other splits, 2 samples with too few frames"
    lines = [
        f"{data}, split train: 11 samples in 3 shards; left out: {left_out}",
        f"{data}, split val: 3 samples in 1 shard; left out: 13 samples of other splits",
    ]
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if "left out" in line] == lines * 2
    assert [(row["step"], row["text"]) for row in rows(config, "data")] == [(s, line) for s in (0, 2) for line in lines]


def test_resume_never_refuses_an_output_with_a_checkpoint(config: TrainConfig) -> None:
    run(config, toy(stop_at=2))
    config.checkpoint.resume = NEVER
    with pytest.raises(Refused, match=r"checkpoint\.resume=never; choose another output"):
        run(config, toy())


def test_saved_configuration_repeats_the_run(config: TrainConfig, undisturbed: list[tuple[int, float]]) -> None:
    from trainer.config.loader import load_config

    run(config, toy())
    again = load_config(TrainConfig, [Path(config.output) / "config.yaml"], [f"output={config.output}-again"])
    assert replace(again, output=config.output) == config
    run(again, toy())
    assert losses(again) == undisturbed


def test_what_a_killed_run_left_half_written_is_gone_before_the_first_step(config: TrainConfig) -> None:
    """Its space may be what the next checkpoint lacks."""
    run(config, toy(stop_at=2))
    leftover = Path(config.output) / "checkpoints" / "step-00000007"
    shutil.copytree(leftover.with_name("step-00000002"), leftover)
    (leftover / "COMPLETE").unlink()
    seen: list[bool] = []
    run(config, looking(lambda: seen.append(leftover.exists())))
    assert seen == [False] * (STEPS - 2)


@pytest.mark.parametrize("minutes", [0.0, 10.0])
def test_a_budget_of_no_minutes_is_no_watchdog(config: TrainConfig, minutes: float) -> None:
    config.watchdog = WatchdogConfig(step_budget=minutes)
    seen: set[bool] = set()
    run(config, looking(lambda: seen.add("watchdog" in {thread.name for thread in threading.enumerate()})))
    assert seen == {minutes > 0}


@pytest.mark.parametrize("fails", [False, True])
def test_the_data_workers_are_ended_however_the_run_ends(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Not some time later, when the collector comes to them: the ranks leave their group next."""
    at_work: list[bool] = []
    loaders: list[ClipLoader] = []
    begin, stop = ClipLoader.__init__, distributed.stop

    def kept(loader: ClipLoader, *words: Any, **more: Any) -> None:
        loaders.append(loader)
        begin(loader, *words, **more)

    def leave() -> None:
        at_work.append(loaders[0]._running is not None)
        stop()

    monkeypatch.setattr(ClipLoader, "__init__", kept)
    monkeypatch.setattr(distributed, "stop", leave)
    config.optim.max_skipped = 2
    with pytest.raises(Failed) if fails else nullcontext():
        run(config, toy(broken_from=0 if fails else None))
    assert at_work == [False]


def test_global_batch_that_ranks_cannot_share_is_refused(config: TrainConfig) -> None:
    config.micro_batch = 3
    with pytest.raises(Refused, match=r"data\.global_batch=4 on 1 ranks is 4 clips a rank, .*micro_batch=3"):
        run(config, toy())


def test_the_watchdog_lets_the_last_upload_take_as_long_as_upload_wait_says(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the upload is a part of the run of its own, and the wait for it may take longer than any budget."""
    looked, expected = threading.Event(), list[str]()

    def expect(dog: Watchdog, what: str, minutes: float) -> None:
        expected.append(what)
        if expected.count("the last upload") == 3:
            looked.set()

    put, patience = Remote.put, [20]

    def slow(*arguments: Any) -> None:
        looked.wait(patience.pop() if patience else 0)
        put(*arguments)

    monkeypatch.setattr(Remote, "put", slow)
    monkeypatch.setattr(Watchdog, "expect", expect)
    monkeypatch.setattr("trainer.checkpoint.joint_upload.FINISH_POLL_S", 0.02)
    config.checkpoint.upload = str(tmp_path / "remote")
    assert run(config, toy()) is Stopped.FINISHED
    assert looked.is_set()
    assert expected.index("the end") < expected.index("the last upload")
