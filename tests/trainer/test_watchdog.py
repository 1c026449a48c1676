"""The watchdog in processes that really hang; tests/launch/test_watching.py has it in a training of two ranks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.watchdog import EXIT_STATUS, HELD_S, TOGETHER_S, Watchdog, WatchdogConfig

ROOT = Path(__file__).parents[2]
HANGING = """
import ctypes, sys, threading, time
from pathlib import Path
from trainer import watchdog
watchdog.TOGETHER_S = 0.1

def reads_for_ever():
    time.sleep(100)

def keeps_the_lock():
    ctypes.PyDLL(None).sleep(100)  # unlike CDLL, PyDLL keeps Python's lock during the call

threading.Thread(target=reads_for_ever, daemon=True).start()
with watchdog.Watchdog(Path(sys.argv[1]), rank=3, held=0.5) as dog:
    dog.expect("step 1", 10)
    dog.expect("step 2", {seconds} / 60)
    time.sleep({before})
    {hang}()
"""


def hang(directory: Path, call: str, before: float = 0.0, seconds: float = 0.3) -> subprocess.CompletedProcess[str]:
    program = HANGING.format(hang=call, before=before, seconds=seconds)
    command = [sys.executable, "-c", program, str(directory)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_step_beyond_its_budget_leaves_every_threads_stack_and_exits(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "hangs"
    for _ in range(2):
        done = hang(directory, "time.sleep(100) or reads_for_ever")
        assert done.returncode == EXIT_STATUS, done.stderr
    report = (directory / "rank-00003.txt").read_text()
    assert report.count("rank 3: step 2 has taken") == 2  # that of the start before is kept
    for text in (done.stderr, report):
        assert "step 2 has taken" in text
        assert "in reads_for_ever" in text  # the other thread
        assert "in <module>" in text  # the main thread
    assert f"exits with status {EXIT_STATUS}; its stacks are in {directory}/rank-00003.txt" in done.stderr


def test_a_hang_that_keeps_pythons_lock_ends_as_well(tmp_path: Path) -> None:
    done = hang(tmp_path / "hangs", "keeps_the_lock", before=1.2, seconds=2.0)
    assert done.returncode == 1
    report = (tmp_path / "hangs" / "rank-00003.txt").read_text()
    assert "Timeout" in report
    assert "in keeps_the_lock" in report
    assert "in reads_for_ever" in report


def test_a_rank_that_keeps_pythons_lock_writes_before_the_others_end() -> None:
    """Their launcher kills it then, so its C clock has to strike while they wait."""
    assert HELD_S + 1 < TOGETHER_S


def test_what_stays_in_its_budget_leaves_nothing_behind(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "hangs", rank=0) as dog:
        for step in range(4):
            dog.expect(f"step {step}", 0.2 / 60)
            time.sleep(0.1)
    assert os.listdir(tmp_path) == []


def test_switched_off_it_does_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "hangs", rank=0, enabled=False) as dog:
        dog.expect("step 1", 0.0)
        time.sleep(0.2)
    assert os.listdir(tmp_path) == []


def test_budgets_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"watchdog\.start_budget=14\.0 and .* must not be less than .*step_budget=90"):
        WatchdogConfig(step_budget=90)
    WatchdogConfig(step_budget=0, start_budget=0)
