"""The noise of the latents: normal, of the posteriors' shapes, and a clip's own where each clip has a generator."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.noise import Noise, draw_noise
from model.vidtwin import VidTwin

CONFIG = VidTwinConfig(
    frames=4,
    min_frames=2,
    image_size=40,
    patch_size=8,
    width=32,
    depth=1,
    heads=4,
    structure=StructureConfig(queries=3, query_width=16, query_heads=2, query_layers=2, query_hidden=24, conv_width=8),
    dynamics=DynamicsConfig(channels=6),
)


def sources(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("halvings", [(1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("frames", [2, 4])
def test_noise_has_the_shapes_of_the_posteriors(frames: int, halvings: tuple[int, int]) -> None:
    structure, dynamics = (
        replace(part, downsamplings=count)
        for part, count in zip((CONFIG.structure, CONFIG.dynamics), halvings, strict=True)
    )
    config = replace(CONFIG, structure=structure, dynamics=dynamics)  # type: ignore[arg-type]
    posteriors = VidTwin(config)(torch.zeros(2, 3, frames, 40, 40)).posteriors
    for noise, posterior in zip(draw_noise(config, 2, frames), posteriors, strict=True):
        assert noise.shape == posterior.mean.shape
        assert noise.dtype is torch.float32


def test_noise_is_normal_and_each_latent_has_its_own() -> None:
    config = replace(CONFIG, image_size=1280)
    parts = draw_noise(config, 2, 4, source=torch.Generator().manual_seed(1))
    for part in parts:
        count, moments = part.numel(), [part.double().pow(n).mean().item() for n in (1, 2, 4)]
        deviations = [(1 / count) ** 0.5, (2 / count) ** 0.5, (96 / count) ** 0.5]
        for moment, wanted, deviation in zip(moments, (0, 1, 3), deviations, strict=True):
            assert abs(moment - wanted) < 5 * deviation
    assert not torch.equal(parts.dynamics_w, parts.dynamics_h)


@pytest.mark.parametrize("frames", [2, 4])
def test_one_generator_a_clip_makes_its_noise_independent_of_the_batch(frames: int) -> None:
    together = draw_noise(CONFIG, 3, frames, source=sources([7, 8, 9]))
    alone = draw_noise(CONFIG, 1, frames, source=sources([8]))
    assert all(torch.equal(row[1:2], single) for row, single in zip(together, alone, strict=True))


def test_each_clip_needs_a_generator_of_its_own() -> None:
    for count in (2, 4):
        with pytest.raises(ValueError, match="zip"):
            draw_noise(CONFIG, 3, 4, source=sources(list(range(count))))


def test_without_a_generator_the_noise_is_torchs_own() -> None:
    torch.manual_seed(5)
    first: Noise = draw_noise(CONFIG, 1, 4)
    torch.manual_seed(5)
    second: Tensor = draw_noise(CONFIG, 1, 4).structure
    assert torch.equal(first.structure, second)
