"""launch/estimate.py: the lines that it prints, and batches that do not divide."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch import estimate as script

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_script_prints_every_stage_and_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(CONFIGS / "train" / "demo.yaml"), "--device", "a100", "zero.stage=2"]
    monkeypatch.setattr(sys, "argv", ["estimate.py", *words, "--gpus", "2", "model.depth=1"])
    assert script.main() == 0
    shown = capsys.readouterr().out
    for word in ("ZeRO 0", "ZeRO 2 (this)", "none (this)", "every 2", "selective", "clips/s", "0.34 (an assumption"):
        assert word in shown
    monkeypatch.setattr(sys, "argv", ["estimate.py", *words, "--gpus", "3"])
    assert script.main() == 2
    assert "data.global_batch=8 cannot be divided among 3 ranks" in capsys.readouterr().err


def test_a_dit_is_estimated_before_its_latents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--diffusion", "--config", str(CONFIGS / "diffusion" / "small.yaml"), "dit.depth=1", "--price", "2"]
    model = ["--model", str(CONFIGS / "model" / "base.yaml")]
    assert script.main([*words, *model, "--classes", "101", "--gpus", "2"]) == 0
    shown = capsys.readouterr().out
    for word in ("ZeRO 1 (this)", "none (this)", "global batch    64 = 2 ranks x 1 x 32 clips", " at 2 an hour;"):
        assert word in shown
    assert "discriminator" not in shown
    for wrong, message in (
        ([], "name the latents: data.shards=DATASET, or --model DIRECTORY"),
        ([*model, "data.shards=x", "--classes", "2"], "data.shards=x both name the latents"),
        (model, "with dit.condition=class needs --classes N, how many there will be"),
        (
            [*model, "--classes", "2", "dit.condition=none"],
            "--classes 2 belongs to --model with dit.condition=class",
        ),
        ([*model, "--classes", "2", "--device", "this"], "--device this times steps of launch/train.py only"),
        (["data.shards=nowhere", "--device", "this"], "--device this times steps of launch/train.py only"),
        (["data.shards=nowhere"], "nowhere"),
        (["--model", "nowhere", "--classes", "2"], "nowhere"),
    ):
        assert script.main([*words, *wrong]) == 2, wrong
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1, said.err
        assert message in said.err
    assert script.main(["--config", str(CONFIGS / "train" / "demo.yaml"), "--classes", "2"]) == 2
    assert "give --diffusion as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--share", "inf"], "inf must be above 0 and at most 1"),
        (["--share", "2"], "2 must be above 0 and at most 1"),
        (["--gpus", "2", "--device", "this", "--measure", "3"], "--measure 3 must lie between 1 and the 2 of --gpus"),
        (
            ["--gpus", "2", "--device", "this", "--measure", "2", "--diffusion"],
            "--device this times steps of launch/train.py",
        ),
    ],
)
def test_what_the_words_alone_show_to_be_wrong_is_refused_before_any_work(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--config", str(CONFIGS / "train" / "demo.yaml"), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
