"""Costs of the paper's Figure 5: operations against torch's own counter, memory against that of a real step."""

from __future__ import annotations

import pytest

from launch import estimate
from model.config import VidTwinConfig
from trainer.estimate.figure5 import BASELINES, Cost, Latent, computed, measured, vidtwin_latents

OURS = vidtwin_latents(VidTwinConfig())
OTHERS = {latent.name: latent for latent in BASELINES}


@pytest.mark.parametrize("latent", [OURS[1], OTHERS["EMU-3"], OTHERS["iVideoGPT"]], ids=lambda latent: latent.name)
def test_what_is_computed_is_what_a_real_step_takes(latent: Latent) -> None:
    expected, found = computed(latent), measured(latent)
    assert found.flops == expected.flops
    assert found.activations == pytest.approx(expected.activations, rel=0.01)


def test_tokens_are_counted_by_hand() -> None:
    assert [latent.tokens for latent in OURS] == [8 * 7 * 7 + 8 * 14, 2 * 7 * 7 + 2 * 14]
    assert {latent.numbers for latent in OURS} == {4 * 16 * 7 * 7 + 8 * 16 * 14}
    tokens = {name: latent.tokens for name, latent in OTHERS.items()}
    assert tokens.pop("iVideoGPT") == 1 * 8 * 8 + 7 * 2 * 2
    assert tokens.pop("CMD") == 112 * 112 + 8 * 224
    assert set(tokens.values()) == {2 * 14 * 14}


def test_rates_are_those_of_the_papers_table_1() -> None:
    assert OURS[0].rate == OURS[1].rate == pytest.approx(0.20, abs=0.005)
    paper = {"MAGVIT-v2": 0.65, "EMU-3": 0.53, "CV-VAE": 0.53, "iVideoGPT": 1.50, "CMD": 6.85}
    for name, rate in paper.items():
        assert OTHERS[name].rate == pytest.approx(rate, abs=0.01)  # of 4 / 768 the paper makes .53, not .52


def test_the_uniform_latent_costs_more_than_ours_in_patches_of_as_many_places() -> None:
    ours, uniform = computed(OURS[1]), computed(OTHERS["EMU-3"])
    assert isinstance(ours, Cost)
    assert uniform.flops > 3 * ours.flops
    assert uniform.activations > 2 * ours.activations


def test_the_script_prints_the_table_and_refuses_other_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main(["--figure5"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len([line for line in shown if line.startswith("VidTwin, ")]) == 2
    assert {line.partition(":")[0] for line in shown if ": " in line} >= set(
        OTHERS
    )  # each says where its shape is from
    for words, message in (
        (["--gpus", "2"], "--gpus means nothing with --figure5"),
        (["model.image_size=112", "data.image_size=112"], "--figure5 compares latents of clips of 16 x 224 x 224"),
    ):
        assert estimate.main(["--figure5", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
