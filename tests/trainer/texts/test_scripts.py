"""The scripts on a DiT that is told of captions: its check before the start, its export, and its estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import estimate, export
from model.dit import DiT
from model.dit_config import DIT_CONFIG_FILE
from tests.launch.two_ranks import ROOT, environment
from tests.tools import warm
from tests.trainer.diffusion.cases import tiny_config
from trainer.config.loader import to_yaml

SCRIPT = "launch/train_diffusion.py"
BASE = str(ROOT / "configs" / "model" / "base.yaml")


@pytest.fixture(scope="module")
def settings(captioned: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run of three steps, which names its latents and texts."""
    words = [f"data.shards={captioned}", f"data.text={texts}", "dit.condition=text", "data.workers=0", "steps=3"]
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    file.write_text(to_yaml(tiny_config("unused", *words)))
    return file


def started(settings: Path, output: Path, *words: str) -> str:
    """What a training of one process says, which must succeed."""
    command = [SCRIPT, "--config", str(settings), f"output={output}", *words]
    done = warm.run(command, environment=environment(output.parent))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_run_is_checked_trained_and_exported_as_it_exports_itself(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    checked = started(settings, output, "--check")
    assert f"start         a new run of 3 steps in {output}" in checked
    assert not output.exists()
    started(settings, output)
    for folder, words in (("model_ema", []), ("model", ["--weights", "raw"])):
        assert export.main(["--checkpoint", str(output), "--output", str(tmp_path / folder), *words]) == 0
        files = {file.name: file.read_bytes() for file in (output / folder).iterdir()}
        assert DIT_CONFIG_FILE in files
        assert {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()} == files
    learning = sum(weight.numel() for weight in DiT.from_pretrained(output / "model").parameters())
    capsys.readouterr()
    assert estimate.main(["--diffusion", "--config", str(settings)]) == 0
    shown = capsys.readouterr().out
    assert f"parameters      {learning / 1e6:.4g} million\n" in shown


def test_a_dit_that_is_told_of_captions_is_estimated_before_its_latents_exist(
    texts: Path, captioned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--diffusion", "--config", str(ROOT / "configs" / "diffusion" / "small.yaml"), "dit.depth=1"]
    words = [*small, "dit.condition=text", "--model", BASE]
    assert estimate.main([*words, f"data.text={texts}"]) == 0
    assert "ZeRO 1 (this)" in capsys.readouterr().out
    for wrong, message in (
        ([], "dit.condition=text needs token embeddings of captions; set data.text="),
        (["data.text=nowhere"], "nowhere: no dataset.json there"),
        ([f"data.text={captioned}"], "is a dataset of latents; give one of texts"),
        (
            [f"data.text={texts}", "--classes", "2"],
            "--classes 2 belongs to --model with dit.condition=class",
        ),
        ([f"data.text={texts}", f"data.shards={captioned}"], f"data.shards={captioned} both name the latents"),
    ):
        assert estimate.main([*words, *wrong]) == 2, wrong
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1, said
