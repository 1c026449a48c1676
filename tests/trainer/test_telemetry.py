"""What is written down of a step, read back from the files; test_loop.py has whole runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trainer.cases import tiny_config
from trainer.distributed import Ranks
from trainer.nonfinite import NonFiniteRun
from trainer.telemetry import Telemetry


def test_the_loss_scale_of_fp16_is_logged_and_named_where_steps_are_skipped(
    alone: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(str(tmp_path), "steps=20", "telemetry.log_every=2", "precision=fp16")
    config = replace(config, optim=replace(config.optim, max_skipped=3))
    with Telemetry(config, alone) as telemetry:
        telemetry.begin(0, {"tokens_per_clip": 1.0, "flops_per_clip": 1.0}, resumed=None)
        scale = 2.0
        for step, bad in enumerate([False, True, True], start=1):
            loss = torch.tensor(float("nan") if bad else 5.0)
            terms = {"total_loss": loss, "skipped": torch.tensor(float(bad))}
            telemetry.record(step, terms, {"loss_scale": scale}, ["a"], {})
            scale *= 0.5 if bad else 1
        terms = {"total_loss": torch.tensor(torch.nan), "skipped": torch.ones(())}
        with pytest.raises(NonFiniteRun, match=r"(?s)3 steps in a row up to step 4 .*The loss scale was 0\.5 by then"):
            telemetry.record(4, terms, {"loss_scale": scale}, ["a"], {})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"], row["loss_scale"]) for row in rows] == [(2, 1, 2.0), (4, 2, 0.5)]
    assert "1 skipped (loss scale 2)" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("gradient/loss_scale")] == [(2, 2.0), (4, 0.5)]
