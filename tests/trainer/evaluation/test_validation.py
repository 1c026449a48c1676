"""Validation passes in the course of a run of the toy method (see toy.py); test_two_ranks.py has those of ranks."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from data_pipeline.read.loader import Batch
from data_pipeline.read.sweep import iterate_clips
from model.lpips import LPIPS
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.toy import STEPS, Toy, checkpoints, losses, rows, toy
from trainer.config.running import ClipValidationConfig, WatchdogConfig
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.evaluation.validation import Validation
from trainer.faults.watchdog import Watchdog
from trainer.loop import Stopped
from trainer.run import Refused, run
from trainer.telemetry import pace
from trainer.telemetry.gif import gif_of


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    clips = make_clips(11, frames=(9, 12)) + make_clips(3, frames=(9, 17), split="val")
    return str(write_dataset(tmp_path / "with val", split_into_shards(clips, [4])))


def measured(config: TrainConfig, network: LPIPS, brighter: float) -> tuple[float, float]:
    """PSNR and LPIPS of the held-out windows made brighter, as the toy rebuilds them: means over windows of frames."""
    psnr, lpips = [], []
    for clips in iterate_clips(config.data, "val", windows="all", batch_size=1):
        real = clips.video[0].transpose(0, 1).double() / 255  # [T, 3, H, W]
        fake = (real + brighter).clamp(0, 1)
        psnr.append((-10 * (real - fake).square().mean(dim=(1, 2, 3)).log10()).mean())
        lpips.append(network((2 * real - 1).float(), (2 * fake - 1).float()).mean())
    assert len(psnr) == 4
    return float(torch.stack(psnr).mean()), float(torch.stack(lpips).mean())


def test_validation_changes_nothing_but_what_is_written(config: TrainConfig, held_out: str, tmp_path: Path) -> None:
    config = replace(config, data=replace(config.data, shards=held_out))
    run(config, toy())
    torch.manual_seed(4)
    network = LPIPS()  # of random weights, as good as any here
    for head in network.heads.parameters():
        head.abs_()  # like the published ones: a distance is not negative
    network.save(tmp_path / "lpips.safetensors")
    other = replace(config, output=str(tmp_path / "validated"), validation=ClipValidationConfig(every=3, clips=100))
    other.loss = replace(config.loss, lpips_weights=str(tmp_path / "lpips.safetensors"))
    run(other, toy())
    assert losses(other) == losses(config)
    found = rows(other, "validation")
    assert [(row["step"], row["val_windows"], row["val_unreadable"]) for row in found] == [(n, 4, 0) for n in (3, 6, 9)]
    psnr, lpips = measured(other, network, abs(dict(losses(config))[3]) / 100)
    assert found[0]["val_psnr"] == pytest.approx(psnr, abs=1e-3)
    assert found[0]["val_lpips"] == pytest.approx(lpips, rel=1e-3)
    assert all(0 < row["val_psnr"] < 20 and 0 < row["val_ssim"] < 1 and row["val_lpips"] > 0 for row in found)
    events = EventAccumulator(str(Path(other.output) / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("validation/val_psnr")]
    assert shown == [(row["step"], pytest.approx(row["val_psnr"])) for row in found]


def test_a_pass_is_no_part_of_training_to_the_watchdog_and_to_clips_a_second(
    config: TrainConfig, held_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of their own, on which a step of four clips takes 2 s and a pass 1000 s."""
    now, parts = [0.0], []
    step, validate = Toy.step, Toy.validate

    def slow_step(toy: Toy, batch: Batch, number: int, observed: bool) -> dict[str, Tensor]:
        now[0] += 2
        return step(toy, batch, number, observed)

    def slow_pass(toy: Toy, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        now[0] += 1000
        return validate(toy, stop_requested)

    monkeypatch.setattr(Toy, "step", slow_step)
    monkeypatch.setattr(Toy, "validate", slow_pass)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Watchdog, "expect", lambda dog, what, minutes: parts.append((what, minutes)))
    config = replace(config, data=replace(config.data, shards=held_out), validation=ClipValidationConfig(every=3))
    config.watchdog = WatchdogConfig(step_budget=1, start_budget=2, pause_budget=3)
    config.telemetry.log_every = 2  # so that the first pass lies between two log steps
    run(config, toy())
    rates = [(row["step"], row["clips_per_s"], row["step_seconds"]) for row in rows(config)]
    assert rates == [(step, 2, 2) for step in (2, 4, 6, 8, STEPS)]
    expected = [("the start", 2.0)]
    for number in range(1, STEPS + 1):
        expected += [(f"validation after step {number}", 3.0)] if number % 3 == 0 else []
        expected += [(f"saving after step {number}", 3.0)] if number in (4, 8, STEPS) else []
        expected += [(f"step {number + 1}", 1.0) if number < STEPS else ("the end", 3.0)]
    assert parts == expected


def test_a_pass_is_given_up_when_a_stop_is_requested(
    config: TrainConfig, held_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first of its two batches of clips."""
    rebuilt: list[int] = []

    def rebuild(toy: Toy, video: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        rebuilt.append(len(video))
        return video

    monkeypatch.setattr(Toy, "rebuild", rebuild)
    config = replace(config, data=replace(config.data, shards=held_out), validation=ClipValidationConfig(every=3))
    config.micro_batch = 2
    assert run(config, toy()) is Stopped.PREEMPTED
    assert rebuilt == [2]
    assert [row["step"] for row in rows(config)] == [1, 2, 3]
    assert rows(config, "validation") == []
    assert checkpoints(config) == ["step-00000003"]


def test_validation_without_held_out_clips_is_refused(config: TrainConfig) -> None:
    config.validation = ClipValidationConfig(every=3)
    with pytest.raises(Refused, match=r"validation\.every=3 wants clips of the split 'val': .*set validation\.every=0"):
        run(config, toy())
    assert not Path(config.output).exists()


def test_pictures_are_of_the_same_held_out_clips_every_time(config: TrainConfig, held_out: str) -> None:
    """The toy shows its clips as they are; those of the split val are the first windows that evaluation measures."""
    data = replace(config.data, shards=held_out)
    config = replace(config, data=data, validation=ClipValidationConfig(every=100, clips=3))
    config.telemetry.samples_every, config.telemetry.sample_clips = 3, 2
    run(config, toy())
    events = EventAccumulator(str(Path(config.output) / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    sweep = iter(iterate_clips(data, "val", windows="all", batch_size=1, limit=3))
    for index in range(2):
        columns = next(sweep).video[0].permute(1, 2, 3, 0)[None].repeat(2, 1, 1, 1, 1)
        shown = events.Images(f"samples_val/{index}")
        assert [event.step for event in shown] == [3, 6, 9]
        assert {event.encoded_image_string for event in shown} == {gif_of(columns)[0]}
    assert len({event.encoded_image_string for event in events.Images("samples_batch/0")}) == 3


class Pixels(torch.nn.Module):
    """In place of I3D: the mean of each colour."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return video.mean(dim=(2, 3, 4))


class OneAfterTheOther(Ranks):
    """Ranks of one process: what the first gave is kept for the second, which knows of both."""

    def __init__(self, rank: int, ranks: int, kept: list[Any]) -> None:
        super().__init__(rank, ranks, 0, torch.device("cpu"), None)
        object.__setattr__(self, "kept", kept)

    def gather(self, value: Any) -> list[Any]:
        kept: list[Any] = vars(self)["kept"]
        kept.append(value)
        return kept[-self.world_size :]


def test_fvd_and_several_splits_are_the_same_on_two_ranks(config: TrainConfig, held_out: str, tmp_path: Path) -> None:
    file = tmp_path / "features.pt"
    torch.jit.script(Pixels()).save(str(file))  # type: ignore[no-untyped-call]
    settings = ClipValidationConfig(every=3, clips=3, splits=["val"], fvd=str(file))
    data = replace(config.data, shards=held_out)

    def measured_by(ranks: Ranks, settings: ClipValidationConfig) -> dict[str, float]:
        validation = Validation(settings, data, batch=2, perceptual={}, ranks=ranks)
        found = validation.run(lambda video: 0.9 * video, lambda: False)
        assert found is not None
        return found

    kept: list[Any] = []
    single = measured_by(OneAfterTheOther(0, 1, []), settings)
    measured_by(OneAfterTheOther(0, 2, kept), settings)
    assert measured_by(OneAfterTheOther(1, 2, kept), settings) == single
    real = [
        clips.video[0].double().mean(dim=(1, 2, 3)).numpy()
        for clips in iterate_clips(data, "val", windows="all", batch_size=1, limit=3)
    ]
    fake = [
        0.9 * clips.video[0].double().mean(dim=(1, 2, 3)).numpy()
        for clips in iterate_clips(data, "val", windows="all", batch_size=1, limit=3)
    ]
    means = [np.mean(rows, axis=0) for rows in (real, fake)]
    covariances = [np.cov(rows, rowvar=False) for rows in (real, fake)]
    root = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root
    assert single["val_fvd"] == pytest.approx(expected, rel=1e-3)
    both = measured_by(OneAfterTheOther(0, 1, []), replace(settings, splits=["val", "train"], fvd=""))
    assert {name: value for name, value in both.items() if name.startswith("val_")} == {
        name: value for name, value in single.items() if name != "val_fvd"
    }
    assert both["train_windows"] == 3
    assert both["train_psnr"] != both["val_psnr"]


def test_what_is_no_network_for_fvd_is_refused(config: TrainConfig, held_out: str, tmp_path: Path) -> None:
    config.data = replace(config.data, shards=held_out)
    config.validation = ClipValidationConfig(every=3, fvd=str(tmp_path / "none.pt"))
    with pytest.raises(Refused, match=r"validation\.fvd=.*none\.pt is no file"):
        run(config, toy())
