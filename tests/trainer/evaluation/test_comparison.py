"""The interval of a difference against SciPy's bootstrap and the normal distribution; verdicts on known inputs."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from trainer.evaluation import comparison
from trainer.evaluation.comparison import compare, sentence
from trainer.evaluation.windows import Windows


def windows(by_source: dict[str, list[float]], metric: str = "psnr") -> Windows:
    """Windows with these values, 8 frames apart."""
    keys = [(name, 8 * number) for name, values in by_source.items() for number in range(len(values))]
    values = np.array([value for values in by_source.values() for value in values])
    return Windows(keys=keys, intervals=[1] * len(keys), fps=[25.0] * len(keys), parts=[], values={metric: values})


def drawn(sources: int, mean: float, seed: int = 0) -> tuple[Windows, Windows, np.ndarray]:
    """A model, a baseline, and the mean difference of each source, with three windows a source."""
    random = np.random.default_rng(seed)
    differences = random.normal(mean, 1, sources)
    noise = random.normal(20, 5, (sources, 3))
    names = [f"{number:03d}" for number in range(sources)]
    base = {name: row.tolist() for name, row in zip(names, noise, strict=True)}
    ours = {name: (row + gain).tolist() for name, row, gain in zip(names, noise, differences, strict=True)}
    return windows(ours), windows(base), differences


def test_the_interval_is_that_of_scipy_and_of_the_normal_distribution() -> None:
    """All sources have as many windows, so the mean over windows is the mean over sources."""
    ours, base, differences = drawn(60, 0.5)
    found = compare(ours, base)["metrics"]["psnr"]
    assert found["difference"] == pytest.approx(differences.mean(), abs=1e-9)
    from scipy import stats  # a second to import

    scipy = stats.bootstrap((differences,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    half = 1.96 * differences.std(ddof=1) / math.sqrt(60)
    assert [found["low"], found["high"]] == pytest.approx([scipy.low, scipy.high], abs=0.02)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.08)


def test_windows_of_a_source_are_no_independent_draws() -> None:
    """With every window repeated ten times there is not more to know, and the interval stays as wide as it was."""
    ours, base, _ = drawn(40, 0.1)

    def ten(found: Windows) -> Windows:
        places = [place for place in range(len(found)) for _ in range(10)]
        keys = [(found.keys[place][0], 8 * number) for number, place in enumerate(places)]
        values = {"psnr": found.values["psnr"][places]}
        return Windows(keys=keys, intervals=[1] * len(keys), fps=[], parts=[], values=values)

    one, many = compare(ours, base)["metrics"]["psnr"], compare(ten(ours), ten(base))["metrics"]["psnr"]
    assert [many["low"], many["high"]] == pytest.approx([one["low"], one["high"]], abs=1e-9)


def test_a_source_counts_by_its_windows() -> None:
    """The difference is the mean over windows: (3 x 1 + 1 x 5) / 4."""
    found = compare(windows({"a": [1, 1, 1], "b": [5]}), windows({"a": [0, 0, 0], "b": [0]}))["metrics"]["psnr"]
    assert found["difference"] == 2
    assert (found["low"], found["high"]) == (1, 5)  # the draws with only the one or only the other source


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("psnr", 0.1, "better"),
        ("psnr", -0.1, "worse"),
        ("lpips", -0.1, "better"),
        ("lpips", 0.1, "worse"),
        ("psnr", 0.0, "no difference"),
    ],
)
def test_a_constant_shift_is_a_difference_and_none_is_none(metric: str, shift: float, verdict: str) -> None:
    base = {f"{number}": [0.25 * number, 0.5] for number in range(30)}
    ours = {name: [value + shift for value in values] for name, values in base.items()}
    found = compare(windows(ours, metric), windows(base, metric))["metrics"][metric]
    assert [found["difference"], found["low"], found["high"]] == pytest.approx([shift] * 3, abs=1e-12)
    assert found["verdict"] == verdict


def test_what_is_noise_is_called_none_about_19_times_in_20() -> None:
    """60 pairs of models that do not differ: 3 false alarms are expected, and 10 or more have a chance of 1 in 1000."""
    verdicts = [compare(*drawn(40, 0.0, seed)[:2])["metrics"]["psnr"]["verdict"] for seed in range(60)]
    assert 0 <= 60 - verdicts.count("no difference") < 10


def test_one_source_decides_nothing_and_few_are_remarked() -> None:
    found = compare(windows({"a": [1.0, 2.0]}), windows({"a": [0.0, 0.0]}))
    assert (found["metrics"]["psnr"]["low"], found["metrics"]["psnr"]["verdict"]) == (None, "undecided")
    assert "one source says nothing about others" in found["remarks"][0]
    assert sentence("psnr", found["metrics"]["psnr"]) == "+1.500 dB: undecided"
    assert "rough" in compare(windows({"a": [1.0], "b": [2.0]}), windows({"a": [1.0], "b": [2.0]}))["remarks"][0]


def test_only_windows_that_both_have_are_compared() -> None:
    found = compare(windows({"a": [1.0, 9.0], "b": [1.0]}), windows({"a": [0.0], "c": [0.0]}))
    assert (found["windows"], found["sources"], found["metrics"]["psnr"]["difference"]) == (1, 1, 1.0)
    assert compare(windows({"a": [1.0]}), windows({"c": [0.0]}))["windows"] == 0


def test_the_draws_of_many_sources_are_not_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 resamples of 300 sources are 3 million numbers, and a block has a hundredth of them."""
    monkeypatch.setattr(comparison, "_NUMBERS_AT_ONCE", 30_000)
    ours, base, _ = drawn(300, 0.0)
    tracemalloc.start()
    try:
        compare(ours, base)
        assert tracemalloc.get_traced_memory()[1] < 3e6  # bytes
    finally:
        tracemalloc.stop()
