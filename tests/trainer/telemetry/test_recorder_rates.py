"""How fast a run is, by a clock that the test turns, and what it holds in memory, by the kernel's own account."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_pipeline.read.loader import Batch
from tests.trainer.cases import as_batch, tiny_config
from trainer.distributed import Ranks
from trainer.method import Facts
from trainer.telemetry import pace
from trainer.telemetry.recorder import Telemetry

WAIT, STEP = 1.0, 3.0
"""Seconds until a batch is there, and of a whole step with that."""
FACTS = Facts(samples_per_step=4, tokens_per_sample=128.0, flops_per_sample=900.0)
TERMS = {"total_loss": torch.ones(()), "skipped": torch.zeros(())}


class Pair(Ranks):
    """Two ranks that are alike."""

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


@pytest.fixture
def pair(alone: Ranks) -> Ranks:
    return Pair(**vars(alone) | {"world_size": 2})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [5e4]
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def batches(clock: list[float]) -> Iterator[Batch]:
    while True:
        clock[0] += WAIT
        yield as_batch(torch.zeros(2, 3, 8, 32, 32))


def train(log: Telemetry, clock: list[float], first: int, last: int, step: float = STEP) -> None:
    """Steps `first` to `last`, counted from 1."""
    for number, _ in zip(range(first, last + 1), log.pace.waiting(batches(clock), lambda batch: 1.0), strict=False):
        clock[0] += step - WAIT
        log.record(number, TERMS, {}, ["a"], {}, float)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if "event" not in row]


def test_rates_are_those_of_the_clock(pair: Ranks, clock: list[float], tmp_path: Path) -> None:
    words = ("steps=20", "telemetry.log_every=5", "telemetry.tensorboard=false", "telemetry.peak_flops=1000")
    with Telemetry(tiny_config(str(tmp_path), *words), pair) as log:
        log.begin(0, FACTS, resumed=None)
        train(log, clock, 1, 12)
    for row in rows(tmp_path):
        assert row["step_seconds"] == pytest.approx(3.0)
        assert row["clips_per_s"] == pytest.approx(4 / 3)  # of both ranks
        assert row["tokens_per_s"] == pytest.approx(128 * 4 / 3)
        assert row["data_wait"] == pytest.approx(1 / 3)
        assert row["mfu"] == pytest.approx(900 * 4 / 3 / 2000)  # of two devices
    assert [row["step"] for row in rows(tmp_path)] == [5, 10]


def test_after_a_rollback_nothing_before_it_counts(pair: Ranks, clock: list[float], tmp_path: Path) -> None:
    words = ("steps=20", "telemetry.log_every=5", "telemetry.tensorboard=false")
    with Telemetry(tiny_config(str(tmp_path), *words), pair) as log:
        log.begin(0, FACTS, resumed=None)
        train(log, clock, 1, 9)
        log.rolled_back(5, "a spike", {"step": 5})
        train(log, clock, 6, 10)
    assert [row["step"] for row in rows(tmp_path)] == [5, 10]
    for row in rows(tmp_path):
        assert row["step_seconds"] == pytest.approx(3.0)
        assert row["data_wait"] == pytest.approx(1 / 3)
        assert row["tokens_per_s"] == pytest.approx(128 * 4 / 3)


def test_validation_and_pictures_do_not_count(pair: Ranks, clock: list[float], tmp_path: Path) -> None:
    """Fifty seconds and then seven stand aside in the middle of five steps of three seconds each."""
    words = ("steps=20", "telemetry.log_every=5", "telemetry.tensorboard=false")
    with Telemetry(tiny_config(str(tmp_path), *words), pair) as log:
        log.begin(0, FACTS, resumed=None)
        train(log, clock, 1, 3)
        for seconds in (50.0, 7.0):
            with log.pace.aside():
                clock[0] += seconds
        train(log, clock, 4, 5)
    (row,) = rows(tmp_path)
    assert row["step_seconds"] == pytest.approx(3.0)
    assert row["clips_per_s"] == pytest.approx(4 / 3)
    assert row["data_wait"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("seconds", "left"), [(3.0, "0:15"), (130.0, "10:50"), (3000.0, "4:10:00")])
def test_the_time_that_is_left_is_that_of_the_steps_to_come_at_the_pace_of_this_start(
    pair: Ranks, clock: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float, left: str
) -> None:
    """Five of twenty steps are left after five of this start, which went on after step 10."""
    words = ("steps=20", "telemetry.log_every=5", "telemetry.tensorboard=false")
    with Telemetry(tiny_config(str(tmp_path), *words), pair) as log:
        log.begin(10, FACTS, resumed=None)
        train(log, clock, 11, 15, step=seconds)
    assert capsys.readouterr().out.endswith(f"  {left} left\n")


def test_memory_is_what_the_kernel_says(pair: Ranks, tmp_path: Path) -> None:
    words = ("steps=20", "telemetry.log_every=1", "telemetry.tensorboard=false")
    with Telemetry(tiny_config(str(tmp_path), *words), pair) as log:
        log.begin(0, FACTS, resumed=None)
        log.record(1, TERMS, {}, ["a"], {}, float)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    highest = 1024 * int(line.split()[1])
    (row,) = rows(tmp_path)
    # getrusage counts what the process was before it became Python as well, and the kernel counts in batches of pages.
    assert 0.9 * highest < row["memory_gb"] * 1e9 < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_only_the_main_rank_writes(alone: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = Pair(**vars(alone) | {"world_size": 2, "rank": 1})
    with Telemetry(tiny_config(str(tmp_path), "steps=20", "telemetry.log_every=1"), second) as log:
        log.begin(0, FACTS, resumed=tmp_path)
        assert log.record(1, TERMS, {}, ["a"], {}, float) == {"total_loss": 1.0}  # but knows what was logged
        log.rolled_back(0, "a spike", {"step": 0})
        log.validated(1, {"psnr": 1.0, "windows": 1.0, "unreadable": 0.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
