"""Tallies against NumPy on the values themselves; the draw against its expected share."""

import numpy as np
import pytest

from data_pipeline.report.tally import Reservoir, Tally


def test_a_histogram_is_that_of_the_values() -> None:
    values = np.random.default_rng(0).integers(16, 80, 5000) / 10  # three digits hold them exactly
    tally = Tally()
    for part in np.array_split(values, 7):
        tally.add(part.tolist())
    histogram = tally.histogram(bins=20)
    assert histogram is not None
    counts, edges = np.histogram(values, 20)
    assert histogram.counts == counts.tolist()
    assert histogram.edges == pytest.approx(edges)
    assert not histogram.log
    assert tally.quantile(0.0) == values.min()
    assert tally.quantile(0.5) == np.quantile(values, 0.5, method="inverted_cdf")
    assert tally.quantile(1.0) == values.max()


def test_a_wide_range_has_bins_of_equal_ratio_and_loses_no_value() -> None:
    values = np.random.default_rng(1).lognormal(9, 1.5, 4000)
    tally = Tally()
    tally.add(values.tolist())
    histogram = tally.histogram()
    assert histogram is not None
    assert histogram.log
    assert sum(histogram.counts) == len(values) == tally.total
    ratios = np.divide(histogram.edges[1:], histogram.edges[:-1])
    assert ratios == pytest.approx(ratios[0])
    assert len(tally.counts) <= 900 * np.ceil(np.log10(values.max() / values.min()) + 1)


def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    tally = Tally()
    tally.add([3.0, 1.0, 4.0, 2.0])
    assert [tally.quantile(share) for share in (0.25, 0.26, 0.5, 0.51, 0.75, 1.0)] == [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="no values"):
        Tally().quantile(0.5)


def test_no_value_one_value_and_values_that_are_none() -> None:
    tally = Tally()
    tally.add([float("nan"), float("inf")])
    assert tally.histogram() is None
    tally.add([25.0, 25.0])
    histogram = tally.histogram()
    assert histogram is not None
    assert histogram.counts == [2]
    assert histogram.edges[0] < 25.0 < histogram.edges[1]


def test_each_item_is_drawn_with_the_same_chance() -> None:
    drawn = np.zeros(50)
    for seed in range(2000):
        reservoir: Reservoir[int] = Reservoir(10, str(seed))
        for item in range(50):
            reservoir.offer(item)
        assert len(set(reservoir.items)) == 10
        drawn[reservoir.items] += 1
    # each count is binomial(2000, 1/5): mean 400, standard deviation 17.9
    assert np.abs(drawn - 400).max() < 4.5 * 17.9
    # of the ten items that fill the reservoir, each seed keeps a hypergeometric number: mean 2, variance 1.306
    assert abs(drawn[:10].sum() - 4000) < 4.5 * (2000 * 1.306) ** 0.5


def test_the_same_seed_draws_the_same() -> None:
    first, second = Reservoir[int](5, "a"), Reservoir[int](5, "a")
    for item in range(1000):
        first.offer(item)
        second.offer(item)
    assert first.items == second.items
