"""What a step draws for a clip, against the generators that it is derived from and the laws that it must follow."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from model.dit_config import LatentSpace
from trainer.config.diffusion import WarmedEmaConfig
from trainer.diffusion.draws import PURPOSE_VALIDATION, are_dropped, draw_clip, draw_noise

SPACE = LatentSpace(structure_shape=(3, 4, 2, 3), dynamics_shape=(2, 4, 6))


def test_a_draw_is_the_philox_block_of_seed_step_and_key() -> None:
    low, high = np.frombuffer(hashlib.sha256(b"clip/7").digest()[:16], "<u8")
    philox = np.random.Philox(key=np.array([5, 101], np.uint64), counter=np.array([0, 12, low, high], np.uint64))
    words = [int(word) for word in philox.random_raw(3)]
    found = draw_clip(5, 12, "clip/7")
    assert found.quantile == pytest.approx(words[0] / 2**64, abs=1e-15)
    assert found.drop == pytest.approx(words[1] / 2**64, abs=1e-15)
    assert found.seed == words[2] // 2


def test_another_seed_step_key_or_purpose_draws_something_else() -> None:
    drawn = [draw_clip(0, 0, "a"), draw_clip(1, 0, "a"), draw_clip(0, 1, "a"), draw_clip(0, 0, "b")]
    drawn += [draw_clip(0, 0, "a", PURPOSE_VALIDATION), draw_clip(2**63 - 1, 10**9, "a/b ü")]
    assert len({number for clip in drawn for number in clip}) == 3 * len(drawn)


def test_quantiles_and_drops_are_uniform_over_clips_and_over_steps() -> None:
    over_clips = [draw_clip(0, 3, f"clip-{number}") for number in range(4000)]
    over_steps = [draw_clip(0, number, "clip") for number in range(4000)]
    for drawn in (over_clips, over_steps):
        for values in zip(*(clip[:2] for clip in drawn), strict=True):
            sorted_values = np.sort(values)
            distance = np.abs(sorted_values - (np.arange(4000) + 0.5) / 4000).max()
            assert distance < 1.95 / 4000**0.5  # Kolmogorov and Smirnov: exceeded once in a thousand samples
        share = float(are_dropped(drawn, 0.2).double().mean())
        assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 4000) ** 0.5)


def test_the_noise_of_a_clip_does_not_depend_on_its_neighbours() -> None:
    both = draw_noise([11, 12], SPACE, torch.device("cpu"))
    alone = draw_noise([12], SPACE, torch.device("cpu"))
    assert [tuple(part.shape) for part in both] == [(2, 3, 4, 2, 3), (2, 2, 4, 6)]
    for part, other in zip(both, alone, strict=True):
        assert torch.equal(part[1:], other)
    numbers = torch.cat([part.flatten() for part in draw_noise(range(200), SPACE, torch.device("cpu"))])
    assert float(numbers.mean()) == pytest.approx(0.0, abs=4 / len(numbers) ** 0.5)
    assert float(numbers.var()) == pytest.approx(1.0, abs=4 * (2 / len(numbers)) ** 0.5)


def test_a_warmed_average_is_as_in_diffusers() -> None:
    """decay = min(decay, (1 + n) / (10 + n)), n the updates before."""
    training_utils = pytest.importorskip("diffusers.training_utils", reason="pip install -e '.[diffusers]'")
    theirs = training_utils.EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.99, min_decay=0.0)
    ours = WarmedEmaConfig(decay=0.99)
    # theirs counts an update before it asks, and takes the first decay for 0
    assert [ours.decay_at(n) for n in range(1, 2000)] == [theirs.get_decay(n + 1) for n in range(1, 2000)]
    assert ours.decay_at(0) == 0.1
    assert WarmedEmaConfig(decay=0.99, warmup=False).decay_at(0) == 0.99
