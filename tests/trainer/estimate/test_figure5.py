"""Costs of the paper's Figure 5: operations against torch's own counter, memory against that of a real step."""

from __future__ import annotations

import pytest

from launch import estimate
from model.config import VidTwinConfig
from trainer.estimate.figure5 import UNIFORM, Cost, Latent, computed, measured, vidtwin_latents

OURS = vidtwin_latents(VidTwinConfig())


@pytest.mark.parametrize("latent", [OURS[1], UNIFORM[0]], ids=lambda latent: latent.name)
def test_what_is_computed_is_what_a_real_step_takes(latent: Latent) -> None:
    expected, found = computed(latent), measured(latent)
    assert found.flops == expected.flops
    assert found.activations == pytest.approx(expected.activations, rel=0.01)


def test_tokens_are_counted_by_hand() -> None:
    assert [latent.tokens for latent in OURS] == [8 * 7 * 7 + 8 * 14, 2 * 7 * 7 + 2 * 14]
    assert {latent.numbers for latent in OURS} == {4 * 16 * 7 * 7 + 8 * 16 * 14}
    assert {latent.tokens for latent in UNIFORM} == {2 * 14 * 14}
    rates = {latent.name: 100 * latent.numbers / (3 * 16 * 224 * 224) for latent in UNIFORM}
    assert rates["EMU-3"] == rates["CV-VAE"] == pytest.approx(0.53, abs=0.01)  # table 1 of the paper


def test_the_uniform_latent_costs_more_than_ours_in_patches_of_as_many_places() -> None:
    ours, uniform = computed(OURS[1]), computed(UNIFORM[0])
    assert isinstance(ours, Cost)
    assert uniform.flops > 3 * ours.flops
    assert uniform.activations > 2 * ours.activations


def test_the_script_prints_the_table_and_refuses_other_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main(["--figure5"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len([line for line in shown if line.startswith("VidTwin, ")]) == 2
    assert any(line.startswith("MAGVIT-v2, iVideoGPT and CMD are left out") for line in shown)
    for words, message in (
        (["--gpus", "2"], "--gpus means nothing with --figure5"),
        (["model.image_size=112", "data.image_size=112"], "--figure5 compares latents of clips of 16 x 224 x 224"),
    ):
        assert estimate.main(["--figure5", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
