"""A disk that fills up in the middle of an evaluation: what was measured is kept, and the same command completes it."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.faults.disks import needs_root, small_disk
from tests.launch.two_ranks import ROOT
from tests.model.tiny_vidtwin import tiny
from trainer.evaluation.pictures import VideoWriter

VIDEOS = 12


def evaluated(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/evaluate.py", *map(str, words), "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@needs_root
def test_an_evaluation_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    """Forty kilobytes take the pieces of some videos and nothing more."""
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    for number in range(VIDEOS):
        with VideoWriter(tmp_path / "videos" / f"{number:02d}.mp4", Fraction(25)) as writer:
            for k in range(2 * model.config.frames):
                writer.write(np.full((48, 64, 3), 4 * k + number, dtype=np.uint8))
    words = ["--model", tmp_path / "model", "--source", tmp_path / "videos"]
    assert evaluated(*words, "--output", tmp_path / "undisturbed").returncode == 0
    with small_disk(tmp_path / "small", "40k") as disk:
        output = disk / "measured"
        short = evaluated(*words, "--output", output)
        assert short.returncode == 1
        *_, last = short.stderr.splitlines()
        assert "no space left; nothing partial was kept: free space and run the same command again" in last
        kept = {file.name: file.read_bytes() for file in (output / "pieces").iterdir()}
        assert 3 <= len(kept) < VIDEOS
        assert all(name.endswith(".npz") for name in kept)
        assert "cut short: " in short.stdout
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        again = evaluated(*words, "--output", output)
        assert again.returncode == 0, again.stderr
        for name in ("report.json", "windows.csv"):
            assert (output / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        now = {file.name: file.read_bytes() for file in (output / "pieces").iterdir()}
        assert len(now) == VIDEOS
        assert kept.items() <= now.items()
