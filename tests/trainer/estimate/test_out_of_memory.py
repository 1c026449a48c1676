"""What a rank says when its GPU has run out of memory; the error is raised by hand, because there is no GPU here."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.cuda._memory_viz import segment_plot

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml
from trainer.estimate.memory import estimate
from trainer.estimate.out_of_memory import HOLES, UNCOUNTED, advice, explain, explain_if_out_of_memory, remedies

ROOT = Path(__file__).parents[3]
SMALL = ("model.depth=1", "gan.weight=0")  # an estimate of it takes a second
SEGMENTS = [{"device": 0, "address": 4096, "total_size": 2**21, "blocks": []}]


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: SEGMENTS)


def test_the_files_hold_the_allocators_blocks_and_what_was_said(tmp_path: Path) -> None:
    said: list[str] = []
    explain(tiny_config(str(tmp_path), *SMALL), 1, 2, 10**9, said.append)
    snapshot = pickle.loads((tmp_path / "oom" / "rank-00001.pickle").read_bytes())
    assert snapshot["segments"] == SEGMENTS
    assert "<script" in segment_plot(snapshot), "the viewer of torch makes its page of it"
    assert (tmp_path / "oom" / "rank-00001.txt").read_text() == "\n".join(said) + "\n"
    text = "\n".join(said)
    assert f"rank 1 ran out of GPU memory. What lay there is in {tmp_path}/oom/rank-00001.pickle" in text
    assert "ZeRO 1 (this)" in text
    assert re.search(r"^change: .* GB a rank, now ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "ranks", "expected"),
    [
        (  # this one has all remedies
            ["zero.stage=0"],
            2,
            ["selective", "zero.stage=2", "mode=every", "mode=full", "zero.stage=3", "offload", "micro_batch=1 acc"],
        ),
        (["activation_checkpointing.mode=full", "zero.stage=3"], 2, ["zero.stage=3 zero.offload", "micro_batch=1 acc"]),
        pytest.param(
            ["activation_checkpointing.mode=full", "micro_batch=1"],
            *(1, ["zero.stage=1 zero.offload_optimizer=true"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_only_changes_that_are_changes(words: list[str], ranks: int, expected: list[str], tmp_path: Path) -> None:
    config = tiny_config(str(tmp_path), *SMALL, *words)
    found = list(remedies(config, estimate(config, ranks), ranks))
    assert [part in remedy.settings for remedy, part in zip(found, expected, strict=True)] == [True] * len(expected)


@pytest.mark.slow
def test_the_cheapest_that_fits_is_named_first(tmp_path: Path) -> None:
    """The estimates are those of `launch/estimate.py` for the changed settings."""
    config = tiny_config(str(tmp_path), *SMALL, "zero.stage=0")
    found = estimate(config, 2)
    now = found.stages[0].total
    each = [remedy for remedy in remedies(config, found, 2) if remedy.bytes < now]
    assert len(each) > 2
    for number, remedy in enumerate(each):
        again = estimate(tiny_config(str(tmp_path), *SMALL, "zero.stage=0", *remedy.settings.split()), 2, modes=False)
        (stage,) = re.findall(r"zero\.stage=(\d)", remedy.settings) or ["0"]
        assert remedy.bytes == again.stages[int(stage)].total, remedy.settings
        capacity = int(HOLES * remedy.bytes) + UNCOUNTED + 1
        text = advice(config, found, 2, capacity)
        cheaper = [other for other in each[:number] if other.bytes <= remedy.bytes]
        assert text.startswith(f"change: {(cheaper or [remedy])[0].settings} (then ")
        assert "may not be enough" not in text
    assert "may not be enough for 2e-06 GB" in advice(config, found, 2, 2000)


def test_another_error_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain_if_out_of_memory(RuntimeError("CUDA out of memory"), tiny_config(str(tmp_path), *SMALL))
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import sys
import torch
from launch import train, training_process
from trainer.autoencoder import Autoencoder

whole_step = Autoencoder.step

def step(*arguments):
    Autoencoder.step = whole_step  # the estimate takes it
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

Autoencoder.step, torch.cuda.memory_snapshot, training_process.LATER_S = step, lambda: [], 0.0
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_training_that_runs_out_of_memory(tmp_path: Path) -> None:
    """The traceback comes first, then the advice, then the status of an error that may pass when a setting changes."""
    data = write_dataset(tmp_path / "data", split_into_shards(make_clips(11, frames=(9, 12)), [4]))
    settings: dict[str, Any] = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    file = tmp_path / "settings.yaml"
    file.write_text(to_yaml(tiny_config(str(tmp_path / "run"), *SMALL, f"data.shards={data}", "data.workers=0")))
    command = [sys.executable, "-c", PROGRAM, "--config", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1, done.stderr
    parts = ("Tried to allocate 2.00 GiB", "rank 0 ran out of GPU memory", "ZeRO 1 (this)", "change: ")
    places = [done.stderr.find(part) for part in parts]
    assert places == sorted(places)
    assert places[0] >= 0
