"""What is written down of a step, read back from the files; test_loop.py has whole runs."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.trainer.cases import as_batch, tiny_config
from trainer.autoencoder_networks import batch_psnr
from trainer.distributed import Ranks
from trainer.method import Facts
from trainer.telemetry.nonfinite import NonFiniteRun
from trainer.telemetry.recorder import Telemetry

FACTS = Facts(samples_per_step=4, tokens_per_sample=1.0, flops_per_sample=1.0)


def test_the_loss_scale_of_fp16_is_logged_and_named_where_steps_are_skipped(
    alone: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(str(tmp_path), "steps=20", "telemetry.log_every=2", "precision=fp16")
    config = replace(config, optim=replace(config.optim, max_skipped=3))
    with Telemetry(config, alone) as telemetry:
        telemetry.begin(0, FACTS, resumed=None)
        scale = 2.0
        for step, bad in enumerate([False, True, True], start=1):
            loss = torch.tensor(float("nan") if bad else 5.0)
            terms = {"total_loss": loss, "skipped": torch.tensor(float(bad))}
            telemetry.record(step, terms, {"loss_scale": scale}, ["a"], {}, float)
            scale *= 0.5 if bad else 1
        terms = {"total_loss": torch.tensor(torch.nan), "skipped": torch.ones(())}
        with pytest.raises(NonFiniteRun, match=r"(?s)3 steps in a row up to step 4 .*The loss scale was 0\.5 by then"):
            telemetry.record(4, terms, {"loss_scale": scale}, ["a"], {}, float)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"], row["loss_scale"]) for row in rows] == [(2, 1, 2.0), (4, 2, 0.5)]
    assert "1 skipped (loss scale 2)" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("gradient/loss_scale")] == [(2, 2.0), (4, 0.5)]


class Told:
    """A logger that writes down what it is told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("scalars", step, dict(values)))

    def pictures(self, step: int, name: str, clips: Tensor) -> None:
        self.calls.append(("pictures", step, name, clips.tolist()))

    def flush(self) -> None:
        self.calls.append(("flush",))


def test_a_logger_is_told_finite_values_and_every_row_of_pictures_and_may_show_them_at_once(
    alone: Ranks, tmp_path: Path
) -> None:
    telemetry = Telemetry(tiny_config(str(tmp_path)), alone)
    logger: Any = Told()
    telemetry.loggers = [logger]
    telemetry.scalars(3, {"psnr": 30.0, "fvd": math.inf, "ssim": -math.inf, "loss": math.nan}, section="validation")
    assert logger.calls == [("scalars", 3, {"validation/psnr": 30.0}), ("flush",)]
    logger.calls.clear()
    telemetry.scalars(4, {"fvd": math.nan})
    assert logger.calls == []
    rows = torch.arange(2 * 3, dtype=torch.uint8).reshape(2, 1, 1, 1, 1, 3)
    telemetry.show(5, {"batch": rows, "val": rows[:1]})
    assert logger.calls == [
        ("pictures", 5, "batch/0", rows[0].tolist()),
        ("pictures", 5, "batch/1", rows[1].tolist()),
        ("pictures", 5, "val/0", rows[0].tolist()),
        ("flush",),
    ]


def test_steps_made_again_from_the_start_are_written_once(alone: Ranks, tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint."""
    config = tiny_config(str(tmp_path), "steps=20", "telemetry.log_every=1")
    for last in (4, 6):
        with Telemetry(config, alone) as telemetry:
            telemetry.begin(0, FACTS, resumed=None)
            for step in range(1, last + 1):
                bad = step == 2
                terms = {"total_loss": torch.tensor(torch.nan if bad else 5.0), "skipped": torch.tensor(float(bad))}
                telemetry.record(step, terms, {}, ["a"], {}, float)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("speed/clips_per_s")] == [1, 2, 3, 4, 5, 6]
    for name, steps in (("metrics", [1, 2, 3, 4, 5, 6]), ("nonfinite", [2])):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == steps


def test_the_signal_to_noise_ratio_is_that_of_clips_in_0_to_1(alone: Ranks, tmp_path: Path) -> None:
    """The step's error is of clips in [-1, 1], which are twice as far apart; the ratio is defined on [0, 1]."""
    config = tiny_config(str(tmp_path), "steps=20", "telemetry.log_every=1", "telemetry.tensorboard=false")
    real, fake = torch.rand(2, 2, 3, 8, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mse = ((2 * real - 1) - (2 * fake - 1)).square().mean()
    with Telemetry(config, alone) as telemetry:
        telemetry.begin(0, replace(FACTS, derived=batch_psnr), resumed=None)
        telemetry.record(1, {"mse": mse.float(), "skipped": torch.zeros(())}, {}, ["a"], {}, float)
        telemetry.record(2, {"mse": torch.zeros(()), "skipped": torch.zeros(())}, {}, ["a"], {}, float)
    first, perfect = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["batch_psnr"] == pytest.approx(-10 * math.log10((real - fake).square().mean()), abs=1e-4)
    assert "batch_psnr" not in perfect  # it would be infinite


class TwoRanks(Ranks):
    """The other rank waited a whole second longer, and took another gigabyte."""

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, str):  # where it runs
            return [value, value]
        waited, memory, forward = value
        return [value, (waited + 1.0, memory + 1e9, forward)]


def test_rates_are_of_the_rank_that_holds_up_the_others_and_count_lengths(alone: Ranks, tmp_path: Path) -> None:
    config = tiny_config(str(tmp_path), "steps=20", "telemetry.log_every=3", "telemetry.tensorboard=false")
    batches = [as_batch(torch.zeros(4, 3, frames, 32, 32)) for frames in (1, 8, 4, 8, 8, 8)]
    with Telemetry(config, TwoRanks(**vars(alone))) as telemetry:
        telemetry.begin(0, replace(FACTS, tokens_per_sample=128.0), resumed=None)
        read = telemetry.pace.waiting(iter(batches), lambda batch: batch.video.shape[2] / 8)
        for step, _ in enumerate(read, start=1):
            telemetry.record(step, {"total_loss": torch.ones(()), "skipped": torch.zeros(())}, {}, ["a"], {}, float)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row, frames in zip(rows, (13 / 3, 8), strict=True):
        assert row["tokens_per_s"] == pytest.approx(row["clips_per_s"] * frames * 16)
        assert row["data_wait"] * 3 * row["step_seconds"] > 1
        assert row["memory_gb"] > 1
