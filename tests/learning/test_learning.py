"""The proof that a diffusion model learns: `python -m tests.learning` is the same by hand, with what it prints."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from tests.learning.clips import RATE, ROW_FRAMES, SHOTS, label_of, write_manifest
from tests.learning.proof import prove

pytest.importorskip("diffusers", reason="pip install -e '.[diffusers]'")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_samples_show_their_class_and_neither_shuffled_labels_nor_guidance_0_do(tmp_path: Path) -> None:
    findings = prove(tmp_path)
    assert all(finding.total >= 60 for finding in findings)
    assert all(finding.met for finding in findings), findings


def test_held_out_frames_are_of_no_training_clip(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.csv", shuffled=False)
    with (tmp_path / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, (_, first, behind) in SHOTS.items():
        mine = [row for row in rows if row["label"] == name]
        (held_out,) = (row for row in mine if row["split"] == "val")
        trained = [row for row in mine if row["split"] == "train"]
        assert all(float(row["end"]) < float(held_out["start"]) for row in trained)
        assert min(float(row["start"]) for row in trained) == pytest.approx(first / RATE)
        assert float(held_out["end"]) == pytest.approx(behind / RATE)
        assert all(float(row["end"]) - float(row["start"]) == pytest.approx(ROW_FRAMES / RATE) for row in mine)


def test_a_shuffled_label_stands_for_each_class_equally_often() -> None:
    for rows in ([*range(6)], [*range(6, 12)]):
        pairs = Counter((place, label_of(place, row, True)) for place in range(6) for row in rows)
        assert set(pairs.values()) == {1}
        assert len(pairs) == 36
