"""Two gloo ranks under DeepSpeed against plain PyTorch on one process, which is fed the same micro-batches.

The ranks run once, also for test_two_ranks_watched.py (see ranks_of_vidtwin.py).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tools.rounding import assert_within
from tests.trainer import exact_start, half, noisy
from tests.trainer.cases import tiny_recipe
from tests.trainer.ranks_of_vidtwin import (
    assert_same_training,
    learnt,
    part_of,
    reference_from,
    results_of,
    scenarios,
    slow_marks,
)
from tests.trainer.reference import Reference, as_results
from tests.trainer.two_ranks import (
    COMBINATIONS,
    DECAYED,
    FROZEN,
    MIXED,
    OFFLOADED,
    OVERLAPPED,
    OWN,
    RECOMPUTED,
    STEERED,
    STEERING,
    decaying_recipe,
)

pytestmark = [pytest.mark.numeric, pytest.mark.engines]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    return results_of(request, tmp_path_factory)


@pytest.fixture(scope="module")
def reference(results: dict[str, Any]) -> Callable[..., Reference]:
    return reference_from(results)


@pytest.mark.parametrize(
    ("stage", "accumulation"),
    [pytest.param(*case, marks=slow_marks("stage {} accumulation {}".format(*case))) for case in COMBINATIONS],
)
def test_every_zero_stage_trains_like_plain_pytorch(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int, accumulation: int
) -> None:
    result = results[f"stage {stage} accumulation {accumulation}"]
    assert_same_training(result, reference(tiny_recipe(), 2, accumulation))
    assert [("adversarial_loss" in row, "disc_loss" in row) for row in result["rows"]] == (
        [(False, False)] * 2 + [(False, True)] * 2 + [(True, True)] * 2
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_and_loaded_goes_on_digit_for_digit(results: dict[str, Any], stage: int) -> None:
    result = results[f"stage {stage} accumulation 1"]
    assert result["resumed"] == result["rows"][3:]
    assert all(torch.equal(value, result["resumed_final"][name]) for name, value in learnt(result["final"]).items())


@pytest.mark.parametrize("stage", scenarios("bf16", range(4)))
def test_bf16_stays_near_fp32(results: dict[str, Any], reference: Callable[..., Reference], stage: int) -> None:
    rows = reference(tiny_recipe(), 2, 1).rows
    for row, wanted in zip(results[f"bf16 stage {stage}"]["rows"], rows, strict=True):
        for name in ("total_loss", "nll_loss", "kl_loss", "l1", "disc_loss", "grad_norm_generator"):
            if name in wanted:
                assert row[name] == pytest.approx(wanted[name], rel=0.04), name


@pytest.mark.parametrize("stage", scenarios("half", half.HALF))
def test_fp16_finds_its_loss_scale_and_stays_near_fp32(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int
) -> None:
    found = results[f"half stage {stage}"]["rows"]
    rows, first = found[-6:], found[:-6]
    fits = half.fitting(stage)
    # At ZeRO 1-3 the first overflow is forgiven (DeepSpeed's hysteresis); from then on each halves the scale.
    scales = [256.0] * (stage > 0) + [scale for scale in (256.0, 128.0, 64.0, 32.0) if scale > fits]
    assert [(row["skipped"], row["loss_scale"]) for row in first] == [(1.0, scale) for scale in scales]
    assert [(row["skipped"], row["loss_scale"]) for row in rows] == [(0.0, fits)] * 6
    wanted = reference(tiny_recipe(), 2, 1).rows
    for row, exact in zip(rows, wanted, strict=True):
        assert row["grad_norm_generator"] == pytest.approx(exact["grad_norm_generator"], rel=0.01)
    # logvar has the largest gradient: as many as there are values in a frame, less their error; at ZeRO 0 it is summed
    # over the ranks before it is divided.
    steepest = 3 * 16 * 16 * (1 - wanted[0]["l1"]) * (2 if stage == 0 else 1)
    assert fits * steepest < torch.finfo(torch.float16).max < 2 * fits * steepest


@pytest.mark.parametrize("stage", scenarios("half", half.HALF))
def test_fp16_skips_a_nan_halves_its_loss_scale_and_takes_it_along(results: dict[str, Any], stage: int) -> None:
    result, fits = results[f"half stage {stage}"], half.fitting(stage)
    assert [(row["skipped"], row["loss_scale"]) for row in result["broken"]] == [(1.0, fits), (1.0, fits / 2)]
    assert result["last"] == fits / 4
    assert result["lowest"] == [(1.0, 2.0**-15), (1.0, 2.0**-16), (1.0, 2.0**-16)]  # no further, and the run goes on
    for name, value in learnt(result["before"]).items():
        assert torch.equal(value, result["after"][name]), name
        assert torch.equal(value, result["read"][name]), name
    assert (result["again"]["skipped"], result["again"]["loss_scale"]) == (float(stage == 3), fits)


@pytest.mark.parametrize(("stage", "mode"), scenarios("recompute", RECOMPUTED))
def test_recomputed_activations_change_nothing(results: dict[str, Any], stage: int, mode: str) -> None:
    usual = results["deeper" if mode == "every" else f"stage {stage} accumulation 1"]
    saving = results[f"recompute stage {stage} {mode}"]
    assert saving["rows"] == usual["rows"]
    assert all(torch.equal(value, saving["final"][name]) for name, value in learnt(usual["final"]).items())


def test_with_dropout_ranks_draw_apart_and_a_resumed_run_draws_as_it_would_have(results: dict[str, Any]) -> None:
    result = results["dropout"]
    assert len({*result["calm"]}) == 1, "the ranks have the same clips and weights"
    assert len({*result["calm"], *result["kl"]}) == 3, "with dropout, each has its own divergence"
    assert result["again"] == result["rows"][noisy.SAVED_AFTER - 1 :]


def test_without_batch_statistics_two_ranks_equal_one(
    results: dict[str, Any], reference: Callable[..., Reference]
) -> None:
    recipe = tiny_recipe()
    recipe.discriminator.norm = "group"
    assert_same_training(results["group norm"], reference(recipe, 1, 1))


@pytest.mark.slow
def test_with_micro_batch_1_and_local_weight_two_ranks_equal_one(
    results: dict[str, Any], reference: Callable[..., Reference]
) -> None:
    recipe = tiny_recipe(local_weight=True)
    assert_same_training(results["micro-batch 1"], reference(recipe, 1, 4))


@pytest.mark.parametrize("stage", scenarios("mixed frames", MIXED))
def test_mixed_frame_counts_train_like_plain_pytorch(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int
) -> None:
    recipe = tiny_recipe()
    recipe.model.min_frames = 1
    assert_same_training(results[f"mixed frames stage {stage}"], reference(recipe, 2, 1))


@pytest.mark.parametrize(("stage", "precision"), scenarios("steered", STEERED))
def test_kl_warmup_fixed_logvar_and_non_saturating_loss_are_plain_pytorchs_and_keep_their_place(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int, precision: str
) -> None:
    result = results[f"steered stage {stage} {precision}"]
    expected = reference(tiny_recipe(**STEERING), 2, 1)
    if precision == "fp32":
        assert_same_training(result, expected)
    for row, wanted in zip(result["rows"], expected.rows, strict=True):
        assert row["logvar"] == STEERING["logvar"]
        assert row["total_loss"] == pytest.approx(wanted["total_loss"], rel=0.04)
    assert float(result["final"]["logvar"]) == STEERING["logvar"]
    assert result["resumed"] == result["rows"][3:]
    assert float(result["resumed_final"]["logvar"]) == STEERING["logvar"]


@pytest.mark.parametrize("stage", scenarios("decay", DECAYED))
def test_where_only_matrices_decay_training_is_plain_pytorchs_with_two_groups(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int
) -> None:
    result = results[f"decay stage {stage}"]
    expected = reference(decaying_recipe(), 2, 1)
    assert_same_training(result, expected)
    everywhere = reference(tiny_recipe(weight_decay=decaying_recipe().weight_decay), 2, 1, seeds=())
    with pytest.raises(AssertionError):
        assert_within(as_results(result["rows"], result["final"]), everywhere.results, expected.bounds)


@pytest.mark.parametrize(("stage", "what"), scenarios("offload", OFFLOADED))
def test_state_in_host_memory_changes_nothing(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int, what: str
) -> None:
    result = results[f"offload stage {stage} {what}"]
    assert_same_training(result, reference(tiny_recipe(), 2, 1))
    assert result["kept"] == (["optimizer"] if what == "optimizer" else ["optimizer", "parameters"])


@pytest.mark.parametrize(
    ("stage", "accumulation"),
    [pytest.param(*case, marks=slow_marks(f"overlap stage {case[0]}")) for case in OVERLAPPED],
)
def test_averaging_beside_the_backward_pass_changes_nothing(
    results: dict[str, Any], stage: int, accumulation: int
) -> None:
    usual, overlapped = results[f"stage {stage} accumulation {accumulation}"], results[f"overlap stage {stage}"]
    assert overlapped["rows"] == usual["rows"]
    assert all(torch.equal(value, overlapped["final"][name]) for name, value in learnt(usual["final"]).items())


@pytest.mark.parametrize(("stage", "precision", "what"), scenarios("exact start", exact_start.CASES))
def test_a_start_in_16_bits_has_the_masters_of_its_file_to_the_last_bit(
    results: dict[str, Any], stage: int, precision: str, what: str
) -> None:
    found = results[f"exact start stage {stage} {precision} {what}"]
    assert found["differing"] == []
    assert found["logvar"] == float(torch.tensor(exact_start.LOGVAR))


def test_each_network_is_trained_with_settings_of_its_own(results: dict[str, Any]) -> None:
    for network, wanted in OWN.items():
        found = results["own settings"][network]
        assert {key: found[key] for key in wanted} == wanted
        assert found["moved"] == pytest.approx(wanted["lr"], rel=0.02)  # Adam's first step, whatever the gradient


ENCODING = ("patch_in.", "encoder.", "structure_encoder.", "dynamics_encoder.")


@pytest.mark.parametrize(("stage", "precision"), scenarios("frozen", FROZEN))
def test_a_frozen_encoder_stays_to_the_last_bit_and_the_decoder_learns_as_in_plain_pytorch(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int, precision: str
) -> None:
    result = results[f"frozen stage {stage} {precision}"]
    start, final = (part_of(result[when], "vidtwin") for when in ("initial", "final"))
    for name, value in start.items():
        assert torch.equal(final[name], value) == name.startswith(ENCODING), name
    if precision == "fp32":
        assert_same_training(result, reference(tiny_recipe(frozen=ENCODING), 2, 1))
    assert result["resumed"] == result["rows"][3:]
    assert all(torch.equal(result["resumed_final"][name], value) for name, value in learnt(result["final"]).items())
