"""What can end a long run in this objective: a state of each cause, the real step from it, and what holds it.

Every guard is also removed (see constructed.py), and then the same state ends the training or leaves its bounds. The
table of causes is in docs/healthy.md.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import warm
from tests.trainer.instability.constructed import DECAY, LOGVAR, LR, SIDE
from trainer.config.running import RollbackConfig
from trainer.faults.rollback import find_spike

pytestmark = [pytest.mark.engines, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
PIXELS = 3 * SIDE * SIDE
STEPS = 3

Result = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    directory = tmp_path_factory.mktemp("instability")
    done = warm.run(
        ["-m", "tests.trainer.instability.constructed", str(directory)],
        environment=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found: dict[str, Result] = torch.load(directory / "results.pt", weights_only=True)
    return found


def assert_trains(result: Result) -> None:
    """Every step was taken, with finite terms."""
    assert result["named"] == []
    for row in result["rows"]:
        assert row["skipped"] == 0
        assert all(math.isfinite(value) for value in row.values()), row


def assert_skipped(result: Result, *terms: str) -> None:
    """Every step was skipped, and nonfinite.jsonl names these terms."""
    assert [row["skipped"] for row in result["rows"]] == [1.0] * STEPS
    assert [row["step"] for row in result["named"]] == list(range(1, STEPS + 1))
    assert all(set(terms) <= set(row["terms"]) for row in result["named"]), result["named"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_scale_far_too_small_counts_as_its_floor_and_rises(results: dict[str, Result], precision: str) -> None:
    """At logvar -90, exp(-logvar) is no fp32 number. With the floor the loss is that at -10, by its formula."""
    guarded, row = results[f"scale {precision}"], results[f"scale {precision}"]["rows"][0]
    assert_trains(guarded)
    assert row["nll_loss"] == pytest.approx(PIXELS * (row["l1"] * math.exp(10) - 10), rel=1e-4)
    assert guarded["logvar"] > -90
    assert_skipped(results[f"without scale {precision}"], "nll_loss", "total_loss")
    assert results[f"without scale {precision}"]["logvar"] == -90


def test_clips_that_are_rebuilt_perfectly_do_not_push_the_scale_past_its_floor(results: dict[str, Result]) -> None:
    """Adam's momentum carries it on by less than ten steps of the rate 0.1; without the floor it falls for ever."""
    assert_trains(results["perfect"])
    assert [row["l1"] for row in results["perfect"]["rows"]] == [0.0] * 20
    assert -11 < results["perfect"]["logvar"] < -10
    assert results["without perfect"]["logvar"] == pytest.approx(-9.95 - 20 * 0.1, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_posterior_too_wide_for_its_exponent_is_bounded(results: dict[str, Result], precision: str) -> None:
    """The divergence is that of log-variance 20, in fp32 whatever the network's type, to 1 % from the means."""
    guarded = results[f"posterior {precision}"]
    assert_trains(guarded)
    latents = 4 * 4 * 2 * 2 + 2 * 4 * 8 * 2  # structure: channels x queries x grid; dynamics: two of channels x frames
    assert guarded["rows"][0]["kl_loss"] == pytest.approx(0.5 * latents * (math.exp(20) - 21), rel=0.01)
    assert_skipped(results[f"without posterior {precision}"], "kl_loss", "total_loss")


def test_a_posterior_beyond_its_bound_does_not_come_back_and_rollback_sees_it(results: dict[str, Result]) -> None:
    """A bounded value has no gradient, so the divergence stays; as a loss it is finite, and a spike."""
    ruined, healthy = results["posterior fp32"]["rows"], results["unheard"]["rows"]
    assert ruined[-1]["kl_loss"] == pytest.approx(ruined[0]["kl_loss"], rel=1e-4)
    losses = [healthy[step % STEPS]["total_loss"] for step in range(20)] + [row["total_loss"] for row in ruined[:2]]
    spike = find_spike(list(enumerate(losses, start=1)), RollbackConfig(factor=10))
    assert spike is not None
    assert (spike.good, spike.values) == (20, losses[-2:])


def test_in_fp16_such_a_posterior_is_a_skipped_step_whose_divergence_is_still_known(results: dict[str, Result]) -> None:
    """A draw with a deviation of e^10 is more than the decoder bears in fp16; the divergence is computed in fp32."""
    assert_skipped(results["half"], "l1", "total_loss")
    assert all("kl_loss" not in row["terms"] for row in results["half"]["named"])
    assert_skipped(results["without half"], "kl_loss")


def test_a_discriminator_that_says_nothing_gets_a_limited_weight_and_moves_nothing(results: dict[str, Result]) -> None:
    """What the weight lets through at the last layer is at most gan.weight times the gradient of the likelihood."""
    guarded, unheard = results["ratio"], results["unheard"]
    assert_trains(guarded)
    assert guarded["rows"][0]["adaptive_weight"] == pytest.approx(1e4)
    assert results["without ratio"]["rows"][0]["adaptive_weight"] > 1e6
    for name in ("total_loss", "grad_norm_generator"):
        assert guarded["rows"][0][name] == pytest.approx(unheard["rows"][0][name], rel=1e-6)


def test_a_batch_without_variance_is_normalised_by_the_offset(results: dict[str, Result]) -> None:
    """Micro-batches of one constant clip; without the norm's offset, the gradient is 0 times infinity."""
    assert_trains(results["statistics"])
    assert results["statistics"]["rows"][0]["disc_loss"] == pytest.approx(1.0)  # the logits are those of nothing
    without = results["without statistics"]
    assert_skipped(without, "adaptive_weight", "total_loss")
    assert without["named"][0]["gradients"]["discriminator"]["count"] > 0


@pytest.mark.parametrize("network", ["lpips", "st_lpips"])
def test_identical_pictures_have_no_distance_and_no_gradient(results: dict[str, Result], network: str) -> None:
    """The gradient's whole norm is that of logvar, which an error of 0 pulls down with the number of values."""
    result = results[f"{network} identical"]
    assert_trains(result)
    assert [row[network] for row in result["rows"]] == [0.0] * STEPS
    assert result["rows"][0]["grad_norm_generator"] == pytest.approx(PIXELS, rel=1e-6)


@pytest.mark.parametrize("network", ["lpips", "st_lpips"])
def test_the_root_at_no_features_has_two_guards(results: dict[str, Result], network: str) -> None:
    """Torch's norm has gradient 0 at a zero vector, and torch's ReLU lets no gradient through there, not even NaN."""
    for name in (f"{network} blind", f"without _unit {network}", f"without F {network}"):
        assert_trains(results[name])
        assert [row[network] for row in results[name]["rows"]] == [0.0] * STEPS
    without = results[f"without _unit and F {network}"]
    assert_skipped(without)
    assert without["named"][-1]["gradients"]["generator"]["count"] > 0


def test_weight_decay_pulls_the_scale_towards_0_unless_only_matrices_decay(results: dict[str, Result]) -> None:
    """One step of AdamW: its own step is the same, and the decay adds rate x decay x value to it."""
    pulled, left = results["decay all"]["logvar"], results["decay matrices"]["logvar"]
    assert pulled - left == pytest.approx(-LR * DECAY * LOGVAR, rel=1e-5)
    assert left == pytest.approx(LOGVAR + LR, rel=1e-5)  # Adam's first step has the length of the rate
