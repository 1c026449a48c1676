"""Two gloo ranks under DeepSpeed: what is measured of a step, shown and skipped, and that looking changes nothing.

The ranks run once, also for test_two_ranks.py (see ranks_of_vidtwin.py).
"""

import json
import math
from typing import Any

import pytest
import torch

from model.vidtwin import VidTwin
from tests.tools.rounding import Moved, Results, assert_within, with_bounds
from tests.trainer import host_waits
from tests.trainer.cases import global_batches, tiny_recipe
from tests.trainer.faults import watched
from tests.trainer.ranks_of_vidtwin import learnt, part_of, results_of, scenarios
from tests.trainer.two_ranks import (
    OBSERVED,
    TIMEOUT_MINUTES,
)

pytestmark = [pytest.mark.numeric, pytest.mark.engines]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    return results_of(request, tmp_path_factory)


@pytest.mark.parametrize("stage", scenarios("broken", range(4)))
def test_step_with_nan_on_one_rank_is_skipped_by_all(results: dict[str, Any], stage: int) -> None:
    result = results[f"broken stage {stage}"]
    assert [row["skipped"] for row in result["rows"]] == [0.0, 1.0, 0.0]
    assert all(torch.equal(value, result["after"][name]) for name, value in learnt(result["before"]).items())
    assert all(torch.isfinite(torch.tensor(result["rows"][2][name])) for name in ("total_loss", "grad_norm_generator"))


@pytest.mark.parametrize("stage", scenarios("average", range(4)))
def test_moving_average_is_that_of_the_full_weights(results: dict[str, Any], stage: int) -> None:
    result = results[f"average stage {stage}"]
    average = result["weights"][0]
    for weights in result["weights"][1:]:
        average = {name: 0.75 * value + 0.25 * weights[name] for name, value in average.items()}
    for name, value in average.items():
        torch.testing.assert_close(result["average"][name], value, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(value, result["after"][name]) for name, value in result["weights"][-1].items())


@pytest.mark.parametrize(("stage", "precision"), scenarios("observed", OBSERVED))
def test_what_a_log_step_says_of_gradients_and_updates(results: dict[str, Any], stage: int, precision: str) -> None:
    """The parts' norms make up the whole; the updates are those of the weights; training does not notice."""
    result = results[f"observed stage {stage} {precision}"]
    row, own = result["rows"][-1], result["own"]
    if precision == "fp32":
        usual = results[f"stage {stage} accumulation 1"]["rows"][:3]
        assert [
            {name: found[name] for name in other} for found, other in zip(result["rows"], usual, strict=True)
        ] == usual
    parts = {name.partition(".")[2].partition(".")[0] for name in result["before"] if name.startswith("vidtwin.")}
    norms = {name: row[f"grad_norm_{name}"] for name in (*parts, "logvar")}
    assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm_generator"], rel=1e-5)
    assert min(norms.values()) > 0
    assert all(own[f"grad_norm_{name}"] == pytest.approx(value, rel=1e-6) for name, value in norms.items())
    for part in parts:
        names = [name for name in result["before"] if name.startswith(f"vidtwin.{part}.") and name in result["after"]]
        before = torch.cat([result["before"][name].flatten() for name in names]).double()
        after = torch.cat([result["after"][name].flatten() for name in names]).double()
        assert row[f"update_{part}"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
        assert row[f"update_{part}"] > 0
    assert "update_logvar" not in row
    divergence = sum(own[f"latent_kl_{name}"] for name in ("structure", "dynamics_w", "dynamics_h"))
    assert divergence == pytest.approx(own["kl_loss"], rel=1e-5)


def test_pictures_at_zero_3_are_the_models_and_leave_training_alone(results: dict[str, Any]) -> None:
    result = results["pictures"]
    assert result["rows"] == results["stage 3 accumulation 1"]["rows"][:4]
    model = VidTwin(tiny_recipe().model)
    model.load_state_dict(part_of(result["state"], "vidtwin"))
    video = global_batches()[0][:2]
    latents = model.encode(video)
    wanted = torch.stack(
        [video, model.decode(latents), model.decode(latents, dynamics=False), model.decode(latents, structure=False)], 1
    )
    found = result["shown"].permute(0, 1, 5, 2, 3, 4).float() / 127.5 - 1
    torch.testing.assert_close(found, wanted.detach().clamp(-1, 1), rtol=0, atol=1.01 / 127.5)


def test_an_infinite_loss_with_finite_gradients_is_a_skipped_step_of_that_network(results: dict[str, Any]) -> None:
    result = results["endless loss"]
    alone, heard, well = result["rows"]
    assert alone["disc_loss"] == heard["disc_loss"] == heard["total_loss"] == torch.inf
    assert torch.isfinite(torch.tensor([alone["total_loss"], heard["nll_loss"], well["total_loss"]])).all()
    assert [row["skipped"] for row in result["rows"]] == [1.0, 1.0, 0.0]
    assert result["moved"] == [["generator"], [], ["generator", "discriminator"]]


@pytest.mark.parametrize("stage", scenarios("evaluated", watched.EVALUATED))
def test_validation_measures_the_exported_weights_and_leaves_training_alone(
    results: dict[str, Any], stage: int
) -> None:
    result = results[f"evaluated stage {stage}"]
    assert result["rows"] == results[watched.EVALUATED[stage]]["rows"][:5]
    for rebuilt, state in (("rebuilt plain", "plain"), ("rebuilt", "average")):

        @torch.no_grad()
        def compute(moved: Moved, state: str = state) -> Results:
            model = VidTwin(tiny_recipe().model).eval()
            model.load_state_dict(part_of(result[state], "vidtwin"))
            moved.weights(model)
            video = moved(result["video"] * 2 - 1).clamp(-1, 1)
            return {"rebuilt": (model.decode(model.encode(video)).clamp(-1, 1) + 1) / 2}

        assert_within({"rebuilt": result[rebuilt]}, *with_bounds(compute))
    assert (result["rebuilt"] - result["rebuilt plain"]).abs().max() > 1e-4  # the average is another model


@pytest.mark.parametrize("stage", scenarios("evaluated", watched.EVALUATED))
def test_set_back_in_the_middle_training_goes_on_as_before(results: dict[str, Any], stage: int) -> None:
    result = results[f"evaluated stage {stage}"]
    assert result["again"] == result["rows"][3:]


@pytest.mark.parametrize("stage", scenarios("suspects", watched.SUSPECTS))
def test_non_finite_gradients_are_named(results: dict[str, Any], stage: int) -> None:
    result = results[f"suspects stage {stage}"]
    first, second, pixel = result["rows"]
    assert [first["step"], second["step"], pixel["step"]] == [2, 3, 4]
    assert [json.loads(line) for line in result["file"].splitlines()] == result["rows"]
    named = {"count": 1, "of": second["gradients"]["generator"]["of"], "first": [watched.BROKEN]}
    assert second["gradients"] == {"generator": named}
    # Beyond plain fp32, somebody looks from the second skipped step on.
    assert first["gradients"] == ({"generator": named} if stage == 0 else {})
    assert (first["terms"], second["terms"]) == ([], [])
    assert second["clips"] == {str(r): [f"step 3 rank {r} clip {c}" for c in range(2)] for r in range(2)}
    assert {"total_loss", "nll_loss", "kl_loss", "disc_loss", "mse"} <= set(pixel["terms"])
    assert pixel["clips"] == {"1": ["step 4 rank 1 clip 0", "step 4 rank 1 clip 1"]}
    assert pixel["gradients"]["generator"]["count"] == named["of"] > 20
    # Nobody has looked at the discriminator's yet, which were finite so far, beyond plain fp32.
    assert pixel["gradients"].get("discriminator", {"count": 0})["count"] == (10 if stage == 0 else 0)
    assert torch.isfinite(result["last"])


@pytest.mark.parametrize("stage", scenarios("waits", host_waits.STAGES))
def test_in_a_step_the_host_waits_for_the_device_only_where_deepspeed_does(results: dict[str, Any], stage: int) -> None:
    found, allowed = results[f"waits stage {stage}"]["waits"], host_waits.OF_DEEPSPEED[stage]
    assert found, "the counting sees what DeepSpeed is known to do"
    assert {where: times for where, times in found.items() if times > allowed.get(where, 0)} == {}


@pytest.mark.parametrize("stage", scenarios("waits", host_waits.STAGES))
def test_a_step_leaves_no_tensor_to_the_garbage_collector(results: dict[str, Any], stage: int) -> None:
    """So a training may run the collector at its log steps only (`trainer/garbage.py`).

    With torch 2.13 on Python 3.11 nothing at all is left; other releases leave a dozen small objects.
    """
    left = results[f"waits stage {stage}"]["garbage"]
    assert not {"Tensor", "Parameter", "FunctionCtx"} & set(left), left
    assert len(left) < 100, left


def test_no_process_group_waits_longer_than_the_run_allows(results: dict[str, Any]) -> None:
    """Groups of torch, of the trainer and of DeepSpeed."""
    assert len(results["timeouts"]) > 2
    assert set(results["timeouts"]) == {60 * TIMEOUT_MINUTES}
