"""docs/ucf101.md and the headers of configs/diffusion: every command parses, and the figures are the estimate's."""

from __future__ import annotations

import re
import shlex
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import train, train_diffusion
from model.config import VidTwinConfig
from tests.launch.scripts import ROOT
from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config
from trainer.estimate.memory import Estimate, estimate
from trainer.estimate.options import Options
from trainer.estimate.prediction import predict
from trainer.estimate.speed import hours
from trainer.estimate.trace_dit import space_of_model, trace_dit

TEXT = (ROOT / "docs" / "ucf101.md").read_text()
CONFIGS = ROOT / "configs" / "diffusion"
GPUS = {"ucf101": 8, "paper": 8, "small": 1}
CHAIN = ("make_manifest", "build_shards", "train", "encode_latents", "train_diffusion", "sample", "evaluate_generation")


def commands() -> list[tuple[str, list[str]]]:
    """The script's name and the words of every command of the page."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    found = []
    for line in blocks.splitlines():
        before, name, words = re.split(r"launch/([a-z_0-9]+)\.py", line, maxsplit=1)
        assert before in ("python ", "deepspeed --num_gpus 8 ")
        found.append((name, shlex.split(words)))
    return found


def test_the_chain_is_whole_and_in_order() -> None:
    names = [name for name, _ in commands()]
    assert [name for name in names if name in CHAIN] == list(CHAIN)


@pytest.mark.parametrize(("name", "words"), [found for found in commands() if found[0] != "estimate"])
def test_a_command_is_refused_for_what_is_missing_here_and_not_for_its_words(
    name: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an empty folder a script misses its files; it would name a word that it does not know first."""
    for script in (train, train_diffusion):
        monkeypatch.setattr(script, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIG_DFL=None))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert import_module(f"launch.{name}").main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"launch/{name}.py: "), said
    assert "is understood" not in said


@cache
def estimated(name: str) -> tuple[DiffusionConfig, Estimate]:
    """The preset on the base model's latents of 101 classes."""
    config = load_config(DiffusionConfig, [CONFIGS / f"{name}.yaml"], ["output=x", "data.shards=x"])
    space = space_of_model(VidTwinConfig(), 101)
    return config, estimate(config, GPUS[name], modes=False, tracer=partial(trace_dit, space=space))


def number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} in {text}"
    return float(match[1].replace(",", ""))


def test_every_preset_is_here() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {*GPUS, "demo"}


@pytest.mark.parametrize("name", [pytest.param("ucf101", marks=pytest.mark.slow), "small"])
def test_a_header_states_what_is_estimated(name: str) -> None:
    config, found = estimated(name)
    header = " ".join((CONFIGS / f"{name}.yaml").read_text().replace("#", " ").split())
    speed, _ = predict(config, found.trace, GPUS[name], Options("h100"))
    assert number(r"(\d+) M parameters", header) == pytest.approx(found.trace.network.learning / 1e6, abs=0.5)
    assert number(r"(\S+) GB (?:a GPU|in bf16)", header) == pytest.approx(found.stages[1].total / 1e9, abs=0.06)
    assert number(r"expects (\d+) clips/s", header) == pytest.approx(speed.clips_per_second, rel=0.005)
    assert number(r"(\S+) hours for", header) == pytest.approx(hours(speed, config.steps), rel=0.005)


@pytest.mark.slow
def test_the_page_states_what_is_estimated_and_multiplies_right() -> None:
    config, found = estimated("ucf101")
    speed, _ = predict(config, found.trace, 8, Options("h100"))
    table = [re.split(r" *\| *", line.strip("| ")) for line in TEXT[: TEXT.index("## 1.")].splitlines() if "|" in line]
    rows = {row[0]: row for row in table}
    whole = hours(speed, config.steps)
    assert float(rows["DiT"][2]) == pytest.approx(whole, rel=0.005)
    for name in ("DiT", "VidTwin"):
        wall, gpu_hours, cost = (float(re.sub("[^0-9.]", "", rows[name][place])) for place in (2, 3, 4))
        assert gpu_hours == pytest.approx(8 * wall, rel=0.01)
        assert cost == pytest.approx(2.5 * gpu_hours, rel=0.01)
    forward = found.trace.flops / found.micro_batch / 3 / 1e12
    assert number(r"of (\S+) TFLOP in fp32 \|", TEXT[TEXT.index("| samples") :]) == pytest.approx(forward, rel=0.02)
    assert float(rows["samples"][2].split()[0]) == pytest.approx(2020 * 50 * 2 * forward / (0.34 * 67) / 3600, abs=0.06)


def test_the_preset_of_ucf101_is_the_papers() -> None:
    """Section D.3."""
    words = ["output=x", "data.shards=x"]
    config, paper = (load_config(DiffusionConfig, [CONFIGS / f"{name}.yaml"], words) for name in ("ucf101", "paper"))
    for section in ("dit", "process", "loss", "optim"):
        assert getattr(config, section) == getattr(paper, section)
    assert (config.dit.depth, config.dit.width, config.dit.class_width) == (18, 1152, 256)
    assert (config.process.objective.value, config.process.steps, config.loss.condition_drop) == ("x0", 1000, 0.2)
    assert (config.optim.dit.betas, config.optim.dit.warmup) == ((0.9, 0.999), 10_000)
