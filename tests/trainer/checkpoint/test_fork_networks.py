"""Forks of a training of VidTwin on two ranks: the discriminator comes, goes or stays, the average goes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tools import warm
from tests.tools.model_files import weight_bytes
from tests.trainer.checkpoint.forked import FORKED, STEPS
from trainer.checkpoint.files import step_name
from trainer.checkpoint.zero_files import SavedEngine

pytestmark = [pytest.mark.engines, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
OF_THE_GENERATOR = ("total_loss", "nll_loss", "kl_loss", "l1", "logvar", "grad_norm_generator")
NUMBERS = (*OF_THE_GENERATOR, "disc_loss", "adversarial_loss", "lecam_loss", "grad_norm_discriminator")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What forked.py leaves; not to be changed."""
    directory = tmp_path_factory.mktemp("forked")
    done = warm.run(["-m", "tests.trainer.checkpoint.forked", str(directory)], timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return directory


def numbers(run: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was logged of it."""
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in written if "event" not in row]
    return {row["step"]: {name: row[name] for name in NUMBERS if name in row} for row in steps}


def discriminator(run: Path, step: int) -> SavedEngine:
    return SavedEngine(run / "checkpoints" / step_name(step) / "discriminator")


def test_a_fork_has_the_numbers_of_its_parent_digit_for_digit(runs: Path) -> None:
    expected = numbers(runs / "parent")
    assert "adversarial_loss" in expected[STEPS]
    assert numbers(runs / "fork") == {step: expected[step] for step in range(FORKED + 1, STEPS + 1)}
    for folder in ("model", "model_ema"):
        assert weight_bytes(runs / "fork" / folder) == weight_bytes(runs / "parent" / folder)


def test_a_fork_may_run_on_other_ranks(runs: Path) -> None:
    """On one rank, at another ZeRO stage: the same losses, up to the rounding of sums in another order."""
    expected, found = numbers(runs / "parent"), numbers(runs / "on one rank")
    assert list(found) == list(range(FORKED + 1, STEPS + 1))
    for step, row in found.items():
        assert row == pytest.approx(expected[step], rel=1e-4), step


def test_a_fork_without_the_discriminator(runs: Path) -> None:
    expected, found = numbers(runs / "parent"), numbers(runs / "off")
    first = FORKED + 1
    for name in ("nll_loss", "kl_loss", "l1", "logvar"):  # of the weights that the parent saved
        assert found[first][name] == expected[first][name]
    assert found[STEPS]["nll_loss"] != expected[STEPS]["nll_loss"]
    assert not any("disc_loss" in row or "adversarial_loss" in row for row in found.values())
    names = sorted(path.name for path in (runs / "off" / "model_ema").iterdir())
    assert names == ["README.md", "config.yaml", "logvar.safetensors", "model.safetensors", "provenance.json"]
    assert not list((runs / "off" / "checkpoints").glob("*/discriminator"))


def test_a_new_discriminator_learns_alone_for_its_warm_up(runs: Path) -> None:
    """It learns from step 5 on; up to step 7 the generator does not hear of it."""
    expected, found = numbers(runs / "plain"), numbers(runs / "on")
    assert ["disc_loss" in found[step] for step in range(4, STEPS + 1)] == [False, True, True, True, True]
    for step in range(4, STEPS):
        assert {name: found[step][name] for name in OF_THE_GENERATOR} == {
            name: expected[step][name] for name in OF_THE_GENERATOR
        }
    exported = load_file(runs / "on" / "model" / "discriminator.safetensors")
    names = {name.removeprefix("discriminator.") for name in discriminator(runs / "on", STEPS).state()}
    assert exported.keys() == names


def test_a_new_discriminator_begins_with_the_weights_of_a_fresh_run(runs: Path) -> None:
    """In the run `late` of the same seed it has not learnt yet after a step."""
    begun, fresh = discriminator(runs / "on", FORKED), discriminator(runs / "late", 1)
    assert (begun.steps, fresh.steps) == (0, 0)
    for name, value in fresh.state().items():
        assert torch.equal(begun.state()[name], value), name
    saved = torch.load(runs / "on" / "checkpoints" / step_name(FORKED) / "method.pt", weights_only=True)
    assert saved["logit_means"].tolist() == [0.0, 0.0]
