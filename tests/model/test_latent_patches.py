"""Latents in 3-D patches, their positions, and their statistics."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.dit import DiT
from model.dit_config import PatchGrid
from model.latent_statistics import ChannelStatistics, Normaliser, Statistics
from model.patches3d import from_patches, positions3d, to_patches
from tests.model.tiny_dit import SPACE, STATISTICS, TINY, latents


def test_a_patch_holds_its_block_and_goes_back_where_it_was() -> None:
    grid = PatchGrid("patch", (3, 4, 6, 10), (2, 3, 5))
    video = torch.arange(2 * 3 * 4 * 6 * 10.0).reshape(2, 3, 4, 6, 10)
    patches = to_patches(video, grid)
    assert patches.shape == (2, 2 * 2 * 2, 2 * 3 * 5 * 3) == (2, grid.tokens, grid.values)
    for token, (a, b, c) in enumerate((a, b, c) for a in range(2) for b in range(2) for c in range(2)):
        block = video[:, :, 2 * a : 2 * a + 2, 3 * b : 3 * b + 3, 5 * c : 5 * c + 5]
        assert torch.equal(patches[:, token], block.movedim(1, -1).flatten(1))
    assert torch.equal(from_patches(patches, grid), video)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure_patch": (3, 1, 1)}, r"dit.structure_patch=\[3, 1, 1\]: 3 does not divide the 4 moments"),
        ({"structure_patch": (1, 1, 2)}, r"2 does not divide the 3 columns"),
        ({"dynamics_patch": (3, 1)}, r"dit.dynamics_patch=\[1, 3, 1\]: 3 does not divide the 4 rows"),
    ],
)
def test_patches_that_do_not_divide_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(replace(TINY, **change), SPACE)


def test_every_place_of_a_latent_has_a_position_of_its_own() -> None:
    grid = PatchGrid("patch", (1, 4, 6, 10), (1, 2, 2))
    table = positions3d(grid, 50)
    assert table.shape == (4 * 3 * 5, 50)
    assert len(torch.unique(table, dim=0)) == len(table)
    # along one axis only its own third of the numbers changes
    cube = table.reshape(4, 3, 5, 50)
    assert torch.equal(cube[0, 0, 0, 16:], cube[3, 0, 0, 16:])
    assert torch.equal(cube[0, 1, 0, :16], cube[0, 2, 0, :16])
    assert float(cube[3, 0, 0, 0]) == pytest.approx(math.sin(3.0))


def test_normalised_latents_have_the_mean_and_deviation_that_the_statistics_say() -> None:
    normaliser = Normaliser(SPACE, STATISTICS).double()
    given = latents()
    found = normaliser.normalise(given)
    for channel, (mean, deviation) in enumerate(zip(*vars(STATISTICS["structure"]).values(), strict=True)):
        torch.testing.assert_close(found.structure[:, channel], (given.structure[:, channel] - mean) / deviation)
    for kind, part, its in (
        ("dynamics_w", found.dynamics_w, given.dynamics_w),
        ("dynamics_h", found.dynamics_h, given.dynamics_h),
    ):
        for channel, (mean, deviation) in enumerate(zip(*vars(STATISTICS[kind]).values(), strict=True)):
            torch.testing.assert_close(part[:, channel], (its[:, channel] - mean) / deviation)
    for back, before in zip(normaliser.denormalise(found), given, strict=True):
        torch.testing.assert_close(back, before)


def test_a_channel_that_is_the_same_everywhere_becomes_zero_and_comes_back() -> None:
    constant = STATISTICS | {"dynamics_h": ChannelStatistics((7.0, 10.0), (0.0, 0.5))}
    normaliser, given = Normaliser(SPACE, constant).double(), latents()
    given.dynamics[:, 0, :, 3:] = 7.0
    found = normaliser.normalise(given)
    assert not found.dynamics_h[:, 0].any()
    assert bool((normaliser.denormalise(found).dynamics_h[:, 0] == 7.0).all())


def test_statistics_stay_exact_in_a_network_of_16_bits() -> None:
    exact = STATISTICS | {"structure": ChannelStatistics((0.1, 0.2, 0.3), (0.7, 1.1, 1.3))}
    model = DiT(TINY, SPACE, statistics=exact).bfloat16()
    assert model.structure_in.weight.dtype is torch.bfloat16
    assert torch.equal(model.normaliser.get_buffer("structure_deviation"), torch.tensor([0.7, 1.1, 1.3]))


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"structure": STATISTICS["structure"]}, "no statistics of 'dynamics_w'"),
        (STATISTICS | {"dynamics_h": ChannelStatistics((0.0,), (1.0,))}, "'dynamics_h' are of 1 channels"),
        (STATISTICS | {"dynamics_h": ChannelStatistics((0.0, 1.0), (1.0, -1.0))}, "channel 1 of 'dynamics_h'"),
    ],
)
def test_statistics_that_cannot_serve_are_refused(statistics: Statistics, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(TINY, SPACE, statistics=statistics)
