"""`optim.decay=matrices`: checkpoints with two groups of weights, from which other stages, ranks and settings go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.discriminator import build_discriminator
from model.vidtwin import VidTwin
from tests.tools import warm
from tests.trainer.cases import tiny_recipe
from tests.trainer.checkpoint.grouped import DECAY, SAVED
from trainer.checkpoint.zero_files import SavedEngine, average_files
from trainer.config.learning import Decay
from trainer.engine.networks import Generator
from trainer.engine.optimizer import weight_groups

ROOT = Path(__file__).parents[3]


def test_the_weights_that_decay_are_those_of_linear_layers_and_convolutions() -> None:
    recipe = tiny_recipe()
    for network in (Generator(VidTwin(recipe.model), 0.0), build_discriminator(recipe.discriminator)):
        shapes = {name: weight.shape for name, weight in network.named_parameters()}
        (matrices, decay), (others, no_decay) = weight_groups(shapes, Decay.matrices)
        assert (decay, no_decay) == (True, False)
        layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        wanted = {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, layers)}
        assert set(matrices) == wanted
        assert set(others) == set(shapes) - wanted
        assert weight_groups(shapes, Decay.all) == [(list(shapes), True)]
    assert weight_groups({"bias": [3]}, Decay.matrices) == [(["bias"], False)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grouped")
    done = warm.run(["-m", "tests.trainer.checkpoint.grouped", str(directory)], timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return directory


@pytest.fixture(scope="module")
def results(saved: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(saved / "results.pt", weights_only=True)
    return found


@pytest.mark.engines
@pytest.mark.slow
def test_every_stage_and_setting_goes_on_with_the_same_bits(results: dict[str, Any]) -> None:
    loaded = [name for name in results if " to " in name]
    assert len(loaded) == 5 + len(SAVED)
    for name in loaded:
        before, after = results[name.split(" to ")[0]], results[name]
        assert after["steps"] == before["steps"] == [{3.0}, {1.0}], name
        for kind in ("master", "average", "exp_avg", "exp_avg_sq"):
            assert after[kind].keys() == before[kind].keys(), f"{name}: {kind}"
            assert all(torch.equal(after[kind][key], value) for key, value in before[kind].items()), f"{name}: {kind}"
        assert after["decays"] == [[DECAY] if name.endswith(" all") else [DECAY, 0.0]] * 2, name


@pytest.mark.engines
@pytest.mark.slow
def test_an_export_reads_two_groups(saved: Path, results: dict[str, Any]) -> None:
    for stage, precision, decay in SAVED:
        name = f"{stage}-{precision}-{decay}"
        engine = SavedEngine(saved / name / "generator", average_files(saved / name))
        for kind, wanted in (("weight", "master"), ("average", "average")):
            state = engine.state(kind)
            assert all(torch.equal(value, results[name][wanted][key]) for key, value in state.items()), (name, kind)
