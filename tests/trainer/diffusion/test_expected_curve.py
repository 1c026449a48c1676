"""The marks of docs/generation.md that a curve of the loss is held against, by predictors whose loss is known.

All of them go through the loss of the training. The presets write the marks into their headers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.dit import DiT
from model.dit_config import Conditioning, DiTConfig, LatentSpace, NoiseSchedule, Objective, ProcessConfig
from model.dit_parts import ClassCondition, Condition
from model.network import Latents
from trainer.config.diffusion import DiffusionLossConfig
from trainer.diffusion.loss import clip_losses
from trainer.diffusion.noise_schedule import alpha_bars
from trainer.diffusion.process import Process, process_of

ROOT = Path(__file__).parents[3]
SPACE = LatentSpace(structure_shape=(4, 16, 7, 7), dynamics_shape=(8, 16, 14), classes=("a", "b"))
NUMBERS = 4928
LINEAR = ProcessConfig(objective=Objective.x0, schedule=NoiseSchedule.linear, steps=1000)
FLOW = ProcessConfig(objective=Objective.flow)
UCF_CLIPS = 45_000
"""Windows of UCF-101 (docs/ucf101.md)."""


def quantiles(clips: int) -> list[float]:
    return [(clip + 0.5) / clips for clip in range(clips)]


def process(config: ProcessConfig, gamma: float = 0.0) -> Process:
    return process_of(config, DiffusionLossConfig(min_snr_gamma=gamma), NUMBERS)


def signs(clips: int) -> tuple[Latents, Latents]:
    """Latents and noise of mean 0 and deviation 1 exactly, whose products are 0 on average exactly."""
    shapes = SPACE.structure_shape, SPACE.dynamics_shape
    places = [torch.arange(math.prod(shape)).expand(clips, -1).reshape(clips, *shape) for shape in shapes]
    return Latents(*(1.0 - 2.0 * (place % 2) for place in places)), Latents(
        *(1.0 - 2.0 * (place // 2 % 2) for place in places)
    )


@pytest.mark.parametrize(("config", "expected"), [(LINEAR, 1.0), (FLOW, 2.0)], ids=["x0", "flow"])
@pytest.mark.parametrize("condition", [Conditioning.none, Conditioning.class_], ids=["none", "class"])
def test_a_new_dit_has_the_loss_of_predicting_nothing(
    config: ProcessConfig, expected: float, condition: Conditioning
) -> None:
    dit = DiT(DiTConfig(width=24, depth=2, heads=2, condition=condition, class_width=8), SPACE, config).eval()
    clean, noise = signs(4)
    told: Condition = ClassCondition(torch.tensor([0, 1, 0, 1])) if condition is Conditioning.class_ else None
    its = process(config)
    with torch.no_grad():
        losses = clip_losses(dit, its, clean, noise, its.times(quantiles(4)), told)
    for loss in losses:
        assert loss.tolist() == pytest.approx([expected] * 4, rel=1e-6)


def loss_of(
    predict: Callable[[Tensor, Tensor], Tensor], config: ProcessConfig, clean: Tensor, gamma: float = 0.0
) -> float:
    """The mean loss of a predictor, which gets what the network sees and the times.

    Args:
        clean: [B, D], the same numbers for both latents.
    """
    its, noise = process(config, gamma), torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))

    def network(structure: Tensor, dynamics: Tensor, times: Tensor, condition: Condition) -> Latents:
        said = predict(structure, times)
        return Latents(said, said)

    times = its.times(quantiles(len(clean)))
    losses = clip_losses(network, its, Latents(clean, clean), Latents(noise, noise), times, None)
    return float(losses.structure.mean())


def wiener(config: ProcessConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The best predictor for numbers that are normal and say nothing of each other: it knows their variance alone."""

    def predict(seen: Tensor, times: Tensor) -> Tensor:
        if config.objective is Objective.x0:
            return alpha_bars(config)[times.long()].sqrt()[:, None].float() * seen
        sigma = times[:, None].float() / 1000  # Cov(velocity, seen) / Var(seen)
        return (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2) * seen

    return predict


SCALED, COSINE = (
    replace(LINEAR, schedule=schedule) for schedule in (NoiseSchedule.scaled_linear, NoiseSchedule.cosine)
)


@pytest.mark.parametrize(
    ("config", "written"),
    [(LINEAR, 0.72), (SCALED, 0.63), (COSINE, 0.50), (FLOW, 1.74)],
    ids=["linear", "scaled", "cosine", "flow"],
)
def test_the_mark_of_a_model_that_knows_variances_alone(config: ProcessConfig, written: float) -> None:
    clean = torch.randn(2000, 200, generator=torch.Generator().manual_seed(3))
    assert loss_of(wiener(config), config, clean) == pytest.approx(written, abs=0.008)


def by_heart(config: ProcessConfig, numbers: int, clips: int) -> float:
    """The mark of docs/generation.md: only steps whose noise hides which clip it is cost anything. It is 0.02 too high.

    Shannon's capacity: of `clips` random clips one is told from the others where (D / 2) ln(1 + SNR) > ln clips.
    """
    bars = alpha_bars(config)
    hidden = numbers / 2 * torch.log1p(bars / (1 - bars)) < math.log(clips)
    return float(((1 - bars) * hidden).mean())


def test_the_mark_of_a_model_that_knows_all_clips_by_heart() -> None:
    clips, numbers = 500, 3000
    clean = torch.randn(clips, numbers, generator=torch.Generator().manual_seed(4))

    def posterior_mean(seen: Tensor, times: Tensor) -> Tensor:
        bars = alpha_bars(LINEAR)[times.long()][:, None].float()
        logits = bars.sqrt() / (1 - bars) * (seen @ clean.T) - bars / (1 - bars) / 2 * clean.square().sum(1)
        return logits.softmax(1) @ clean

    assert loss_of(posterior_mean, LINEAR, clean) == pytest.approx(by_heart(LINEAR, numbers, clips), abs=0.03)
    assert by_heart(LINEAR, NUMBERS, UCF_CLIPS) == pytest.approx(0.27, abs=0.005)  # as docs/generation.md says


@pytest.mark.parametrize("name", ["paper", "small", "ucf101"])
def test_the_presets_say_these_marks(name: str) -> None:
    header = (ROOT / "configs" / "diffusion" / f"{name}.yaml").read_text().partition("\nsteps:")[0]
    for said in ("begins at 1.00", "0.72", "0.25"):
        assert said in header
