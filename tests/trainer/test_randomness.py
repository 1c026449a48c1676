"""The random generators of a process and of single clips: put back they go on as before, seeded apart they differ."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from trainer.randomness import clip_generators, drawn_frames, rng_state, seed_everything, set_rng_state

CPU = torch.device("cpu")
Drawn = tuple[float, float, float]


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])


def drawn() -> Drawn:
    """One number of each generator of the process."""
    return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))


def test_generators_that_are_put_back_go_on_as_they_would_have() -> None:
    seed_everything(1)
    drawn()  # gauss and standard_normal keep a second number for the next call, which is state as well
    state = rng_state()
    wanted = [drawn() for _ in range(3)]
    seed_everything(2)
    drawn()
    set_rng_state(state)
    assert [drawn() for _ in range(3)] == wanted


def test_every_generator_follows_the_seed_and_the_key() -> None:
    def first(seed: int, *key: int) -> Drawn:
        seed_everything(seed, *key)
        return drawn()

    cases = [(1,), (2,), (1, 0, 7), (1, 1, 7), (1, 0, 8), (2, 0, 7)]
    found = [first(*case) for case in cases]
    assert [first(*case) for case in cases] == found
    for numbers in zip(*found, strict=True):
        assert len(set(numbers)) == len(cases)
    assert first(-3, 0) == first(-3, 0)  # a seed may be any integer
    assert first(2**40) == first(2**40)


def test_a_clips_noise_follows_seed_step_and_place_and_nothing_else() -> None:
    def noise(seed: int, step: int, places: range) -> list[float]:
        return [float(torch.randn((), generator=g)) for g in clip_generators(seed, step, places, CPU)]

    whole = noise(3, 5, range(6))
    assert len(set(whole)) == 6
    assert noise(3, 5, range(2, 4)) + noise(3, 5, range(4, 6)) == whole[2:]
    seed_everything(9)
    assert noise(3, 5, range(6)) == whole
    assert not set(whole) & set(noise(3, 6, range(6)))
    assert not set(whole) & set(noise(4, 5, range(6)))


def test_each_frame_is_drawn_as_often_and_none_twice() -> None:
    rows = [row for step in range(500) for row in drawn_frames(7, step, range(4), frames=8, count=3)]
    assert all(len(set(row)) == 3 and row == sorted(row) and set(row) <= set(range(8)) for row in rows)
    counts = np.bincount([frame for row in rows for frame in row], minlength=8)
    share, deviation = 3 / 8, (3 / 8 * 5 / 8 * len(rows)) ** 0.5  # of a binomial distribution
    assert np.abs(counts - share * len(rows)).max() < 5 * deviation


def test_a_clips_frames_depend_on_seed_step_and_place_alone() -> None:
    """So the number of ranks, and where a run was interrupted, change nothing."""
    together = drawn_frames(7, 20, range(8), frames=16, count=2)
    assert together == drawn_frames(7, 20, range(5), frames=16, count=2) + drawn_frames(7, 20, range(5, 8), 16, 2)
    others = [drawn_frames(8, 20, range(8), 16, 2), drawn_frames(7, 21, range(8), 16, 2)]
    assert all(other != together for other in others)
    assert len({tuple(row) for row in together}) > 1
