"""When a loss is a spike: by hand-made curves and the textbook's z-score. tests/trainer/test_loop.py has whole runs."""

import math
import random
import statistics

import pytest

from trainer.rollback import RollbackConfig, find_spike

CONFIG = RollbackConfig(factor=6.0, window=20, patience=2)


def curve(*values: float) -> list[tuple[int, float]]:
    return [(50 * (number + 1), value) for number, value in enumerate(values)]


def noisy(count: int, mean: float, deviation: float) -> list[float]:
    draw = random.Random(3)
    return [draw.gauss(mean, deviation) for _ in range(count)]


def test_a_jump_that_stays_is_a_spike_and_the_step_before_it_is_the_last_good_one() -> None:
    spike = find_spike(curve(*noisy(30, 100.0, 5.0), 150.0, 160.0), CONFIG)
    assert spike is not None
    assert spike.values == [150.0, 160.0]
    assert spike.good == 50 * 30
    assert spike.median == pytest.approx(100, abs=3)
    assert spike.deviation == pytest.approx(5, rel=0.5)


@pytest.mark.parametrize("mean", [0.0, 100.0, -3e5])
@pytest.mark.parametrize("height", [3.0, 4.5, 8.0, 20.0])
def test_the_limit_is_so_many_robust_deviations_whatever_the_sign_of_the_loss(mean: float, height: float) -> None:
    """Around -3e5 the deviation is 1e4, as it may be for a good model, whose loss is negative."""
    scale = max(10.0, abs(mean) / 30)
    before = noisy(20, mean, scale)
    centre = statistics.median(before)
    robust = statistics.median(abs(value - centre) for value in before) / 0.67449  # the normal's upper quartile
    last = centre + height * robust
    found = find_spike(curve(*before, last, last), CONFIG)
    assert (found is not None) is (height > 6)


@pytest.mark.parametrize(
    "values",
    [
        [*noisy(30, 100.0, 5.0), 900.0, 101.0],  # one bad value
        [*noisy(30, 100.0, 5.0), 20.0, 10.0],  # a jump down
        [1000.0 * math.exp(-n / 10) for n in range(32)],  # learning
        [100.0] * 30 + [100.5, 100.6],  # a plateau: without a floor any change would be infinitely many deviations
        [*noisy(19, 100.0, 5.0), 900.0, 900.0],  # too few to know what is normal
    ],
)
def test_what_is_no_spike(values: list[float]) -> None:
    assert find_spike(curve(*values), CONFIG) is None


def test_switched_off_it_finds_nothing() -> None:
    assert find_spike(curve(*noisy(30, 100.0, 5.0), 900.0, 900.0), RollbackConfig()) is None


def test_a_negative_factor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollback\.factor=-1"):
        RollbackConfig(factor=-1)
