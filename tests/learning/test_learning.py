"""The proof that a diffusion model learns: `python -m tests.learning` is the same by hand, with what it prints."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from tests.learning.clips import RATE, SHOTS, label_of, write_manifest
from tests.learning.proof import prove

pytest.importorskip("diffusers", reason="pip install -e '.[diffusers]'")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_samples_show_their_class_and_neither_shuffled_labels_nor_guidance_0_do(tmp_path: Path) -> None:
    findings = prove(tmp_path)
    assert all(finding.total >= 60 for finding in findings)
    assert all(finding.met for finding in findings), findings


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
