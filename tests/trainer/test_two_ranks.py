"""Two gloo ranks under DeepSpeed against plain PyTorch on one process, which is fed the same micro-batches.

The ranks run once for the whole file (see two_ranks.py); the reference (see reference.py) contains no DeepSpeed.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.vidtwin import VidTwin
from tests.tools.rounding import Moved, Results, assert_within, with_bounds
from tests.trainer import exact_start, half, host_waits, noisy
from tests.trainer.cases import global_batches, mixed_batches, tiny_recipe
from tests.trainer.faults import watched
from tests.trainer.pair import run_two_ranks
from tests.trainer.reference import Recipe, Reference, as_results, reference_of
from tests.trainer.two_ranks import (
    COMBINATIONS,
    DECAYED,
    FROZEN,
    MIXED,
    OBSERVED,
    OFFLOADED,
    OVERLAPPED,
    OWN,
    RECOMPUTED,
    SLOW,
    STEERED,
    STEERING,
    TIMEOUT_MINUTES,
    decaying_recipe,
)

pytestmark = [pytest.mark.numeric, pytest.mark.engines]

Weights = dict[str, Tensor]


def scenarios(kind: str, cases: Iterable[Any]) -> list[Any]:
    """Cases of a test, those that only the slow run has marked."""
    marked = []
    for case in cases:
        words = case if isinstance(case, tuple) else (case,)
        name = " ".join([kind, "stage", *map(str, words)])
        marked.append(pytest.param(*words, marks=[pytest.mark.slow] if name.startswith(SLOW) else []))
    return marked


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("two_ranks")
    here = [item for item in request.session.items if item.path == request.path]
    quick = [] if any(item.get_closest_marker("slow") for item in here) else ["--quick"]
    run_two_ranks("tests.trainer.two_ranks", directory, *quick)
    loaded: dict[str, Any] = torch.load(directory / "results.pt", weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def reference(results: dict[str, Any]) -> Callable[..., Reference]:
    """Run the reference from the weights that the ranks began with; equal requests run once."""
    known: dict[str, Reference] = {}

    def run(recipe: Recipe, ranks: int, accumulation: int) -> Reference:
        key = f"{recipe} {ranks} {accumulation}"
        if key not in known:
            name = "group norm" if recipe.discriminator.norm == "group" else "stage 0 accumulation 1"
            start = {part: _part(results[name]["initial"], part) for part in ("vidtwin", "discriminator")}
            batches = mixed_batches() if recipe.model.min_frames else global_batches()
            known[key] = reference_of(recipe, start, batches, ranks, accumulation)
        return known[key]

    return run


def _part(state: Weights, part: str) -> Weights:
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


def assert_same_training(result: dict[str, Any], expected: Reference) -> None:
    """Every term of the reference at each step, and the final weights, as far as rounding explains."""
    found = as_results(result["rows"], result["final"])
    assert_within({name: found[name] for name in expected.results}, expected.results, expected.bounds)


@pytest.mark.parametrize(("stage", "accumulation"), COMBINATIONS)
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
    assert all(torch.equal(value, result["resumed_final"][name]) for name, value in _learnt(result["final"]).items())


@pytest.mark.parametrize("stage", scenarios("broken", range(4)))
def test_step_with_nan_on_one_rank_is_skipped_by_all(results: dict[str, Any], stage: int) -> None:
    result = results[f"broken stage {stage}"]
    assert [row["skipped"] for row in result["rows"]] == [0.0, 1.0, 0.0]
    assert all(torch.equal(value, result["after"][name]) for name, value in _learnt(result["before"]).items())
    assert all(torch.isfinite(torch.tensor(result["rows"][2][name])) for name in ("total_loss", "grad_norm_generator"))


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
    steepest = 3 * 32 * 32 * (1 - wanted[0]["l1"]) * (2 if stage == 0 else 1)
    assert fits * steepest < torch.finfo(torch.float16).max < 2 * fits * steepest


@pytest.mark.parametrize("stage", scenarios("half", half.HALF))
def test_fp16_skips_a_nan_halves_its_loss_scale_and_takes_it_along(results: dict[str, Any], stage: int) -> None:
    result, fits = results[f"half stage {stage}"], half.fitting(stage)
    assert [(row["skipped"], row["loss_scale"]) for row in result["broken"]] == [(1.0, fits), (1.0, fits / 2)]
    assert result["last"] == fits / 4
    assert result["lowest"] == [(1.0, 2.0**-15), (1.0, 2.0**-16), (1.0, 2.0**-16)]  # no further, and the run goes on
    for name, value in _learnt(result["before"]).items():
        assert torch.equal(value, result["after"][name]), name
        assert torch.equal(value, result["read"][name]), name
    assert (result["again"]["skipped"], result["again"]["loss_scale"]) == (float(stage == 3), fits)


@pytest.mark.parametrize(("stage", "mode"), scenarios("recompute", RECOMPUTED))
def test_recomputed_activations_change_nothing(results: dict[str, Any], stage: int, mode: str) -> None:
    usual, saving = results[f"stage {stage} accumulation 1"], results[f"recompute stage {stage} {mode}"]
    assert saving["rows"] == usual["rows"]
    assert all(torch.equal(value, saving["final"][name]) for name, value in _learnt(usual["final"]).items())


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
    assert result["rows"] == results["stage 3 accumulation 1"]["rows"]
    model = VidTwin(tiny_recipe().model)
    model.load_state_dict(_part(result["state"], "vidtwin"))
    video = global_batches()[0][:2]
    latents = model.encode(video)
    wanted = torch.stack(
        [video, model.decode(latents), model.decode(latents, dynamics=False), model.decode(latents, structure=False)], 1
    )
    found = result["shown"].permute(0, 1, 5, 2, 3, 4).float() / 127.5 - 1
    torch.testing.assert_close(found, wanted.detach().clamp(-1, 1), rtol=0, atol=1.01 / 127.5)


def test_with_dropout_ranks_draw_apart_and_a_resumed_run_draws_as_it_would_have(results: dict[str, Any]) -> None:
    result = results["dropout"]
    assert len({*result["calm"]}) == 1, "the ranks have the same clips and weights"
    assert len({*result["calm"], *result["kl"]}) == 3, "with dropout, each has its own divergence"
    assert result["again"] == result["rows"][noisy.SAVED_AFTER - 1 :]


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
            model.load_state_dict(_part(result[state], "vidtwin"))
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


def test_without_batch_statistics_two_ranks_equal_one(
    results: dict[str, Any], reference: Callable[..., Reference]
) -> None:
    recipe = tiny_recipe()
    recipe.discriminator.norm = "group"
    assert_same_training(results["group norm"], reference(recipe, 1, 1))


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
    assert_same_training(result, reference(decaying_recipe(), 2, 1))
    everywhere = reference(tiny_recipe(weight_decay=decaying_recipe().weight_decay), 2, 1)
    with pytest.raises(AssertionError):
        assert_same_training(result, everywhere)


@pytest.mark.parametrize(("stage", "what"), scenarios("offload", OFFLOADED))
def test_state_in_host_memory_changes_nothing(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int, what: str
) -> None:
    result = results[f"offload stage {stage} {what}"]
    assert_same_training(result, reference(tiny_recipe(), 2, 1))
    assert result["kept"] == (["optimizer"] if what == "optimizer" else ["optimizer", "parameters"])


@pytest.mark.parametrize(("stage", "accumulation"), OVERLAPPED)
def test_averaging_beside_the_backward_pass_changes_nothing(
    results: dict[str, Any], stage: int, accumulation: int
) -> None:
    usual, overlapped = results[f"stage {stage} accumulation {accumulation}"], results[f"overlap stage {stage}"]
    assert overlapped["rows"] == usual["rows"]
    assert all(torch.equal(value, overlapped["final"][name]) for name, value in _learnt(usual["final"]).items())


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


def test_no_process_group_waits_longer_than_the_run_allows(results: dict[str, Any]) -> None:
    """Groups of torch, of the trainer and of DeepSpeed."""
    assert len(results["timeouts"]) > 2
    assert set(results["timeouts"]) == {60 * TIMEOUT_MINUTES}


ENCODING = ("patch_in.", "encoder.", "structure_encoder.", "dynamics_encoder.")


@pytest.mark.parametrize(("stage", "precision"), scenarios("frozen", FROZEN))
def test_a_frozen_encoder_stays_to_the_last_bit_and_the_decoder_learns_as_in_plain_pytorch(
    results: dict[str, Any], reference: Callable[..., Reference], stage: int, precision: str
) -> None:
    result = results[f"frozen stage {stage} {precision}"]
    start, final = (_part(result[when], "vidtwin") for when in ("initial", "final"))
    for name, value in start.items():
        assert torch.equal(final[name], value) == name.startswith(ENCODING), name
    if precision == "fp32":
        assert_same_training(result, reference(tiny_recipe(frozen=ENCODING), 2, 1))
    assert result["resumed"] == result["rows"][3:]
    assert all(torch.equal(result["resumed_final"][name], value) for name, value in _learnt(result["final"]).items())


def _learnt(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if "running" not in name and "tracked" not in name}
