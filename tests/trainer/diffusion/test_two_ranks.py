"""Two gloo ranks that train a DiT under DeepSpeed against plain PyTorch on one process (see reference.py).

The ranks run once for the whole file (see two_ranks.py); the reference contains no DeepSpeed and no trainer code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tools.rounding import Moved, Results, assert_within
from tests.trainer.diffusion.cases import STATISTICS, STEPS, latents
from tests.trainer.diffusion.reference import Recipe, clip_loss, dit_of, drawn, normalised, reference_of, share_of
from tests.trainer.diffusion.two_ranks import BF16, CLASS, HALF, SCENARIOS, Scenario
from tests.trainer.pair import shared_results

pytestmark = [pytest.mark.numeric, pytest.mark.engines]
TERMS = ("total_loss", "loss_structure", "loss_dynamics", "grad_norm_dit")
# With one token to look at, the queries of a cross-attention have no gradient; fp32 has one of some 1e-17 there, which
# Adam divides by at least 1e-6.
LEAST = 1e-12
Reference = Callable[[Recipe], tuple[Results, dict[str, float]]]


def slow_unless(quick: bool) -> list[pytest.MarkDecorator]:
    return [] if quick else [pytest.mark.slow]


scenarios = pytest.mark.parametrize(
    "scenario", [pytest.param(one, marks=slow_unless(one.quick), id=one.name) for one in SCENARIOS]
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    return shared_results("tests.trainer.diffusion.two_ranks", [request.path], request, tmp_path_factory)


@pytest.fixture(scope="module")
def reference(results: dict[str, Any]) -> Reference:
    """The reference from the weights that the ranks began with, once a recipe."""
    known: dict[Recipe, tuple[Results, dict[str, float]]] = {}

    def run(recipe: Recipe) -> tuple[Results, dict[str, float]]:
        if recipe not in known:
            name = next(one.name for one in SCENARIOS if one.recipe == recipe and one.name in results)
            known[recipe] = reference_of(recipe, results[name]["initial"])
        return known[recipe]

    return run


def learnt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(("normaliser.", "context.empty"))}


@scenarios
def test_every_zero_stage_trains_like_plain_pytorch(
    results: dict[str, Any], reference: Reference, scenario: Scenario
) -> None:
    exact, bounds = reference(scenario.recipe)
    result = results[scenario.name]
    found = {
        f"step {step} {name}": torch.tensor(row[name], dtype=torch.float64)
        for step, row in enumerate(result["rows"])
        for name in TERMS
    }
    found |= {f"final {name}": value for name, value in learnt(result["final"]).items()}
    found |= {f"average {name}": value for name, value in learnt(result["average"]).items()}
    assert_within(found, exact, {name: max(bound, LEAST) for name, bound in bounds.items()})
    assert [row["skipped"] for row in result["rows"]] == [0.0] * STEPS


@scenarios
def test_saved_and_loaded_it_goes_on_digit_for_digit(results: dict[str, Any], scenario: Scenario) -> None:
    result = results[scenario.name]
    assert result["resumed rows"] == result["rows"][HALF:]
    for what in ("final", "average"):
        assert all(torch.equal(value, result[f"resumed {what}"][name]) for name, value in result[what].items())


@scenarios
def test_a_checkpoint_is_read_at_another_zero_stage_bit_for_bit(results: dict[str, Any], scenario: Scenario) -> None:
    result = results[scenario.name]
    for what, state in result["saved"].items():
        assert all(torch.equal(value, result["at another stage"][what][name]) for name, value in state.items())


@scenarios
def test_validation_is_the_mean_over_held_out_clips_and_fixed_times(
    results: dict[str, Any], scenario: Scenario
) -> None:
    recipe, result = scenario.recipe, results[scenario.name]
    dit = dit_of(recipe, result["final"])
    exact = Moved()
    exact.weights(dit)
    losses = []
    with torch.no_grad():
        for number in range(2):
            batch = latents(number, 2, "val")
            clips = normalised(batch, exact)
            for time in range(8):
                for place, key in enumerate(batch.keys):
                    seed = drawn(0, time, key, purpose=102)[2]
                    losses.append(clip_loss(recipe, dit, batch, clips, place, ((time + 0.5) / 8, 1.0, seed)))
    structure, dynamics = (math.fsum(map(float, some)) / len(losses) for some in zip(*losses, strict=True))
    total = share_of(recipe) * structure + (1 - share_of(recipe)) * dynamics
    wanted = {"val_loss": total, "val_loss_structure": structure, "val_loss_dynamics": dynamics}
    assert result["validation"] == pytest.approx(wanted, rel=1e-5)
    assert result["given up"] is None


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=slow_unless(quick)) for stage, quick in BF16])
def test_bf16_stays_near_fp32_and_keeps_the_statistics_exact(
    results: dict[str, Any], reference: Reference, stage: int
) -> None:
    exact, _ = reference(CLASS)
    result = results[f"bf16 {stage}"]
    for step, row in enumerate(result["rows"]):
        for name in TERMS:
            assert row[name] == pytest.approx(float(exact[f"step {step} {name}"]), rel=0.04), (step, name)
    assert result["resumed rows"] == result["rows"][HALF:]
    for kind, statistics in STATISTICS.items():
        for what in ("final", "resumed final"):
            assert torch.equal(result[what][f"normaliser.{kind}_mean"], torch.tensor(statistics.mean))
            assert torch.equal(result[what][f"normaliser.{kind}_deviation"], torch.tensor(statistics.deviation))


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3))])
def test_a_step_with_nan_on_one_rank_is_skipped_by_all(results: dict[str, Any], stage: int) -> None:
    result = results[f"broken {stage}"]
    assert [row["skipped"] for row in result["rows"]] == [0.0, 1.0, 0.0]
    assert all(torch.equal(value, result["after"][name]) for name, value in result["before"].items())
    assert math.isfinite(result["rows"][2]["total_loss"])
