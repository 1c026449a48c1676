"""A run in Weights & Biases, whose own library writes it to the disk; TensorBoard's files are read in test_loop.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from launch import train
from tests.trainer.cases import tiny_config
from tests.trainer.toy import rows, toy
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.loop import Stopped
from trainer.method import Facts
from trainer.run import Refused, run
from trainer.telemetry.gif import gif_of
from trainer.telemetry.recorder import Telemetry
from trainer.telemetry.weights_and_biases import WeightsAndBiases


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_run_that_goes_on_is_one_run_there_with_all_that_is_logged(config: TrainConfig, offline: None) -> None:
    config.telemetry.wandb, config.telemetry.tensorboard, config.telemetry.samples_every = "some-project", False, 4
    assert run(config, toy(stop_at=5)) is Stopped.PREEMPTED
    assert run(config, toy()) is Stopped.FINISHED
    folder = Path(config.output) / "wandb"
    name = (folder / "id").read_text()
    written = sorted(folder.glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(written) == 2 == len(list(folder.glob("offline-run-*")))
    stored = b"".join(file.read_bytes() for file in written)
    assert b"some-project" in stored
    for row in rows(config):
        assert json.dumps(row["total_loss"]).encode() in stored, row
    assert b"loss/total_loss" in stored
    assert b"schedule/lr_toy" in stored
    assert not (Path(config.output) / "tensorboard").exists()
    shown = [file.read_bytes() for file in folder.glob("offline-run-*/files/media/videos/samples_batch/0_*.gif")]
    assert len(shown) == 3  # after steps 4, 8 and 9
    assert all(gif.startswith(b"GIF89a") for gif in shown)


def test_without_a_login_the_start_is_refused_and_leaves_nothing(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder of the run is there before, and empty; the library asks nobody, because there is no terminal."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where a login would lie
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    config.telemetry.wandb = "some-project"
    Path(config.output).mkdir()
    message = r"telemetry\.wandb=some-project: .*log in with `wandb login`, or set WANDB_MODE"
    wandb.teardown()  # the library reads the environment once a process
    try:
        with pytest.raises(Refused, match=message):
            run(config, toy())
    finally:
        wandb.teardown()
    assert list(Path(config.output).iterdir()) == []


class Second(Ranks):
    """Rank 1 of two, whose first rank has been refused."""

    def gather(self, value: Any) -> list[Any]:
        return [(False, "telemetry.wandb=some-project: no login"), value]


def test_a_refusal_of_the_main_rank_is_one_of_every_rank(tmp_path: Path) -> None:
    """Otherwise the others would go on to a collective call, and end in the stack of a broken connection."""
    config = tiny_config(str(tmp_path), "telemetry.wandb=some-project")
    facts = Facts(samples_per_step=4, tokens_per_sample=1.0, flops_per_sample=1.0)
    message = r"^rank 0: telemetry\.wandb=some-project: no login"
    with (
        Telemetry(config, Second(1, 2, 1, torch.device("cpu"), None)) as telemetry,
        pytest.raises(ValueError, match=message),
    ):
        telemetry.begin(0, facts, resumed=None)


def test_the_pictures_there_are_those_of_tensorboard(tmp_path: Path, offline: None) -> None:
    clips = torch.arange(2 * 3 * 8 * 8 * 3, dtype=torch.int64).remainder(251).byte().view(2, 3, 8, 8, 3)
    logger = WeightsAndBiases("some-project", tmp_path, {})
    logger.pictures(1, "a/0", clips)
    logger.text(1, "note", "<b>")
    print("a line of the console")
    logger.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"a line of the console" not in written.read_bytes(), "the console stays the run's own"
    (gif,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/a/*.gif")
    assert gif.read_bytes() == gif_of(clips)[0]
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/*.html")
    assert page.read_text() == "<pre>&lt;b&gt;</pre>"


def test_without_its_library_it_is_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("launch.training_places.find_spec", lambda name: None)
    words = ["loss.perceptual=none", "telemetry.wandb=p", "data.shards=s3://bucket/x", f"output={tmp_path / 'run'}"]
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "telemetry.wandb=p needs its library: pip install -e '.[wandb]'" in line
