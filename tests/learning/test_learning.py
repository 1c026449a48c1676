"""The proof that a diffusion model learns: `python -m tests.learning` is the same by hand, with what it prints."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.learning.clips import RATE, SHOTS, label_of, write_manifest
from tests.learning.proof import bound_of_chance, prove
from tests.tools.extras import NEEDS_DIFFUSERS

pytestmark = NEEDS_DIFFUSERS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_samples_show_their_class_and_neither_shuffled_labels_nor_guidance_0_do(tmp_path: Path) -> None:
    findings = prove(tmp_path)
    assert all(finding.total >= 60 for finding in findings)
    assert all(finding.met for finding in findings), findings


def tail(shares: Sequence[float], bound: int) -> float:
    """The exact probability of more than `bound` right samples, where trial n is right with probability shares[n]."""
    ways = [1.0]
    for share in shares:
        ways = [
            (ways[right] if right < len(ways) else 0.0) * (1 - share) + (ways[right - 1] * share if right else 0.0)
            for right in range(len(ways) + 1)
        ]
    return sum(ways[bound + 1 :])


def test_the_bound_of_chance_is_passed_once_in_ten_thousand_times_and_far_below_nine_in_ten() -> None:
    bound, classes = bound_of_chance(60), len(SHOTS)
    assert tail([1 / 6] * 60, bound) < 1e-4 <= tail([1 / 6] * 60, bound - 1)
    draws = np.random.default_rng(0)
    for made in (*np.eye(classes), *draws.dirichlet([1.0] * classes, 50), *draws.dirichlet([0.1] * classes, 50)):
        assert tail([share for share in made for _ in range(10)], bound) < 1e-4, "whatever classes such a DiT makes"
    assert 1 - tail([0.9] * 60, bound) < 1e-12


def test_no_frame_is_both_held_out_and_trained_on(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.csv", shuffled=False)
    with (tmp_path / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, (_, first, behind) in SHOTS.items():
        mine = [row for row in rows if row["label"] == name]
        (held_out,) = (row for row in mine if row["split"] == "val")
        times = [(float(row["start"]), float(row["end"])) for row in mine if row["split"] == "train"]
        assert len(set(times)) == 12
        assert all(end < float(held_out["start"]) or begin > float(held_out["end"]) for begin, end in times)
        assert min(times)[0] == pytest.approx(first / RATE)
        assert max(times)[1] == pytest.approx(behind / RATE)


def test_a_shuffled_label_stands_for_each_class_equally_often() -> None:
    for rows in ([*range(6)], [*range(6, 12)]):
        pairs = Counter((place, label_of(place, row, True)) for place in range(6) for row in rows)
        assert set(pairs.values()) == {1}
        assert len(pairs) == 36
