"""Whether two models differ: the mean difference over the same windows, with an interval by the bootstrap.

Windows of one video are alike, so they are no independent draws. The bootstrap therefore draws whole sources (Efron and
Tibshirani 1993, chapter 8; Cameron, Gelbach and Miller 2008): as many sources as there are, with replacement, each with
all of its windows; the difference is worked out again; and the middle 95 % of these differences are the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.measures import METRICS
from trainer.evaluation.windows import Windows, mean

RESAMPLES = 10_000
COVERAGE = 0.95
FEW_SOURCES = 20
"""A number of sources below which the interval tends to be too narrow, and a reader is told so."""
_SEED = 0
_NUMBERS_AT_ONCE = 4_000_000


def compare(model: Windows, baseline: Windows) -> dict[str, Any]:
    """What differs, over the windows that both have.

    Returns:
        `windows` and `sources` that both have, `remarks`, and under `metrics` for each metric `difference` (model minus
        baseline), `low` and `high` (None with a single source), and `verdict`: better, worse, no difference, undecided.
    """
    places = _common(model, baseline)
    if not places:
        return {"windows": 0, "sources": 0, "remarks": ["no window has been measured of both"], "metrics": {}}
    ours, theirs = (np.array(column) for column in zip(*places, strict=True))
    names = [model.keys[place][0] for place in ours]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    source = np.array([numbers[name] for name in names])
    counts = np.bincount(source).astype(np.float64)
    differences = {
        name: model.values[name][ours] - baseline.values[name][theirs]
        for name in METRICS
        if name in model.values and name in baseline.values
    }
    resampled = _resampled(differences, source, counts) if len(counts) > 1 else {}
    found = {name: _compared(name, values, resampled.get(name)) for name, values in differences.items()}
    return {"windows": len(places), "sources": len(counts), "remarks": _remarks(len(counts)), "metrics": found}


def _common(model: Windows, baseline: Windows) -> list[tuple[int, int]]:
    """Places of the same window in both."""
    theirs = {(*key, step): place for place, (key, step) in enumerate(_keyed(baseline))}
    pairs = ((place, theirs.get((*key, step))) for place, (key, step) in enumerate(_keyed(model)))
    return [(place, other) for place, other in pairs if other is not None]


def _keyed(windows: Windows) -> list[tuple[tuple[str, int], int]]:
    return list(zip(windows.keys, windows.intervals, strict=True))


def _draws(sources: int) -> Iterator[NDArray[np.int64]]:
    """How often each resample has each source, [resamples, sources] in blocks of a bounded size."""
    random = np.random.default_rng(_SEED)
    block = max(1, _NUMBERS_AT_ONCE // sources)
    shares = np.full(sources, 1 / sources)
    for first in range(0, RESAMPLES, block):
        yield random.multinomial(sources, shares, size=min(block, RESAMPLES - first))


def _resampled(
    differences: Mapping[str, NDArray[np.float64]], source: NDArray[np.int64], counts: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """For each metric the mean difference in every resample; one block of draws is in memory at a time.

    Args:
        differences: name of a metric -> the difference of each window.
        source: number of the source of each window.
        counts: windows of each source.
    """
    sums = {name: np.bincount(source, weights=each, minlength=len(counts)) for name, each in differences.items()}
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sums}
    for drawn in _draws(len(counts)):
        windows = drawn @ counts
        for name, means in found.items():
            means.append((drawn @ sums[name]) / windows)
    return {name: np.concatenate(means) for name, means in found.items()}


def _compared(name: str, differences: NDArray[np.float64], means: NDArray[np.float64] | None) -> dict[str, Any]:
    said: dict[str, Any] = {"difference": mean(differences.tolist()), "low": None, "high": None, "verdict": "undecided"}
    if means is None:
        return said
    tail = (1 - COVERAGE) / 2
    low, high = (float(bound) for bound in np.quantile(means, [tail, 1 - tail]))
    said |= {"low": low, "high": high, "verdict": "no difference"}
    if low > 0 or high < 0:
        said["verdict"] = "better" if (low > 0) == (METRICS[name][1] == "higher") else "worse"
    return said


def _remarks(sources: int) -> list[str]:
    if sources == 1:
        return ["all windows come from one source, and one source says nothing about others: no interval"]
    if sources < FEW_SOURCES:
        return [f"with {sources} sources the interval is rough and rather too narrow"]
    return []


def sentence(metric: str, compared: Mapping[str, Any]) -> str:
    """What a comparison says of a metric."""
    unit, _, digits = METRICS[metric]
    digits += 1
    said = f"{compared['difference']:+.{digits}f} {unit}".rstrip()
    if compared["low"] is None:
        return f"{said}: undecided"
    interval = f"{100 * COVERAGE:g} % interval {compared['low']:+.{digits}f} to {compared['high']:+.{digits}f}"
    verdict = {"no difference": "no difference is shown"}.get(compared["verdict"], compared["verdict"])
    return f"{said} ({interval}): {verdict}"
