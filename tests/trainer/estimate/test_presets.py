"""The figures in the headers of configs/hardware are those that launch/estimate.py prints."""

import re
from pathlib import Path

import pytest

from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.estimate.memory import estimate
from trainer.estimate.options import Options
from trainer.estimate.prediction import predicted

CONFIGS = Path(__file__).parents[3] / "configs"
TRAINING_DOC = CONFIGS.parent / "docs" / "training.md"
PRESETS = {"one_gpu": 1, "one_node": 8, "four_nodes": 32}


def number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} in {text}"
    return float(match.group(1))


def test_every_file_is_here() -> None:
    assert {file.stem for file in (CONFIGS / "hardware").glob("*.yaml")} == PRESETS.keys()


@pytest.mark.parametrize(
    ("name", "gpus"),
    [pytest.param(*preset, marks=[pytest.mark.slow] if preset[1] > 1 else []) for preset in PRESETS.items()],
)
def test_a_header_states_what_is_estimated(name: str, gpus: int) -> None:
    file = CONFIGS / "hardware" / f"{name}.yaml"
    words = ["output=unused", "data.shards=unused", "loss.lpips_weights=unused"]
    config = load_config(TrainConfig, [CONFIGS / "train/paper.yaml", CONFIGS / "model/base.yaml", file], words)
    found = estimate(config, gpus, modes=False)
    header = " ".join(file.read_text().replace("#", " ").split())

    speed = number(r"speed +(\S+) clips/s", predicted(config, found.trace, gpus, Options("h100")))
    assert number(r"expects (\d+) clips/s", header) == pytest.approx(speed, rel=0.01)
    total = found.stages[config.zero.stage].total / 1e9
    assert number(r"the estimate is (\d+) GB in use", header) == pytest.approx(total, abs=0.6)

    row = next(line for line in TRAINING_DOC.read_text().splitlines() if line.startswith(f"| `{name}.yaml` |"))
    stated = [float(cell) for cell in row.strip("|").split("|")[1:]]

    batch = config.data.global_batch
    hours = gpus / speed / 3600  # of GPUs for a clip
    assert number(r"which is (\S+) GPU hours for a million", header) == pytest.approx(1e6 * hours, rel=0.02)
    assert number(r"a million clips, and (\d+)", header) == pytest.approx(500_000 * batch * hours, rel=0.03)
    assert stated == pytest.approx([gpus, batch, speed, 1e6 * hours], rel=0.02)
    fewer = re.search(r"steps=(\d+) are the paper's number of clips", header)
    assert fewer is None or int(fewer.group(1)) * batch == 500_000 * 6
