"""The watchdog in processes that really hang; tests/launch/test_watching.py has it in a training of two ranks."""

import faulthandler
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.config.running import TOGETHER_S, WatchdogConfig
from trainer.faults import watchdog
from trainer.faults.watchdog import EXIT_STATUS, HELD_S, Watchdog

ROOT = Path(__file__).parents[3]
HANGING = """
import ctypes, faulthandler, sys, threading, time
from pathlib import Path
from trainer.faults import watchdog
watchdog.TOGETHER_S, watchdog.PERIOD_S = 0.1, 0.05
wind, wound = faulthandler.dump_traceback_later, []

def winds(*arguments, **more):
    wind(*arguments, **more)
    wound.append(arguments)

faulthandler.dump_traceback_later = winds

def reads_for_ever():
    time.sleep(100)

def keeps_the_lock():
    ctypes.PyDLL(None).sleep(100)  # unlike CDLL, PyDLL keeps Python's lock during the call

threading.Thread(target=reads_for_ever, daemon=True).start()
with watchdog.Watchdog(Path(sys.argv[1]), rank=3, held={held}) as dog:
    dog.expect("step 1", 10)
    dog.expect("step 2", {seconds} / 60)
    begun = len(wound)
    while {c_clock} and len(wound) < begun + 2:  # the first may have been for step 1
        time.sleep(0.01)
    {hang}()
"""


def hang(directory: Path, call: str, seconds: float, *, c_clock: bool) -> subprocess.CompletedProcess[str]:
    """A hang that one of the clocks must end; the other would be too late."""
    program = HANGING.format(hang=call, seconds=seconds, c_clock=c_clock, held=0.1 if c_clock else 90)
    command = [sys.executable, "-c", program, str(directory)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_step_beyond_its_budget_leaves_every_threads_stack_and_exits(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "hangs"
    for _ in range(2):
        done = hang(directory, "time.sleep(100) or reads_for_ever", 0.3, c_clock=False)
        assert done.returncode == EXIT_STATUS, done.stderr
    report = (directory / "rank-00003.txt").read_text()
    assert report.count("rank 3: step 2 has taken") == 2  # that of the start before is kept
    for text in (done.stderr, report):
        assert "step 2 has taken" in text
        assert "in reads_for_ever" in text  # the other thread
        assert "in <module>" in text  # the main thread
    assert done.stderr.count("step 2 has taken") == 1  # that of the start before is no news
    assert f"exits with status {EXIT_STATUS}; its stacks are in {directory}/rank-00003.txt" in done.stderr


def test_a_hang_that_keeps_pythons_lock_ends_as_well(tmp_path: Path) -> None:
    done = hang(tmp_path / "hangs", "keeps_the_lock", 2.0, c_clock=True)
    assert done.returncode == 1
    report = (tmp_path / "hangs" / "rank-00003.txt").read_text()
    assert "Timeout" in report
    assert "in keeps_the_lock" in report
    assert "in reads_for_ever" in report


def test_a_rank_that_keeps_pythons_lock_writes_before_the_others_end() -> None:
    """Their launcher kills it then, so its C clock has to strike while they wait."""
    assert HELD_S + 1 < TOGETHER_S


def test_what_stays_in_its_budget_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of 50 s with a minute for each, on a clock of their own; after each the watchdog looks."""
    now, looks, strikes, wind = [0.0], [], [], faulthandler.dump_traceback_later

    def winds(seconds: float, **more: Any) -> None:
        wind(seconds, **more)
        looks.append(seconds)

    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watchdog, "PERIOD_S", 0.01)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", winds)
    monkeypatch.setattr(Watchdog, "_strike", lambda dog, what, seconds: strikes.append((what, seconds)))
    with Watchdog(tmp_path / "hangs", rank=0, held=300.0) as dog:
        for step in range(5):
            dog.expect(f"step {step}", 1)
            now[0] += 50 if step < 4 else 61
            begun, end = len(looks), time.monotonic() + 100
            while len(looks) < begun + 2 and time.monotonic() < end:
                time.sleep(0.01)
            if step < 4:
                assert looks[-1] == 10 + 300
                assert strikes == []
    assert strikes[0] == ("step 4", 61.0)
    assert os.listdir(tmp_path) == []


def test_it_watches_on_where_its_report_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread must not end of it: the C clock would strike at a healthy run then."""
    places: list[int] = []
    looked = threading.Event()

    def winds(seconds: float, *, file: int, **more: Any) -> None:
        places.append(file)
        if len(places) == 3:
            looked.set()

    (tmp_path / "hangs").write_text("a file where the folder of the reports would be")
    monkeypatch.setattr(watchdog, "PERIOD_S", 0.01)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", winds)
    with Watchdog(tmp_path / "hangs", rank=0) as dog:
        dog.expect("step 1", 1)
        assert looked.wait(20)
    assert set(places) == {watchdog.STDERR}


def test_its_thread_has_ended_when_the_block_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the thread would go on with a report that is closed, and could strike at what comes after the run."""
    winding, may_go_on = threading.Event(), threading.Event()

    def winds(seconds: float, **more: Any) -> None:
        winding.set()
        assert may_go_on.wait(60)

    monkeypatch.setattr(watchdog, "PERIOD_S", 0.01)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", winds)
    with Watchdog(tmp_path / "hangs", rank=0) as dog:
        dog.expect("step 1", 1)
        assert winding.wait(60)
        threading.Timer(0.2, may_go_on.set).start()
    assert may_go_on.is_set()
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_switched_off_it_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of its clocks runs: no thread is there that could strike, and nobody winds faulthandler's."""
    wound: list[float] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **more: wound.append(seconds))
    before = set(threading.enumerate())
    with Watchdog(tmp_path / "hangs", rank=0, enabled=False) as dog:
        dog.expect("step 1", 0.0)
        assert set(threading.enumerate()) <= before
        assert not dog._thread.is_alive()
    assert wound == []
    assert os.listdir(tmp_path) == []


def test_budgets_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"watchdog\.start_budget=14\.0 and .* must not be less than .*step_budget=90"):
        WatchdogConfig(step_budget=90)
    with pytest.raises(ValueError, match=r"watchdog\.pause_budget=3 must not be less than watchdog\.step_budget=4"):
        WatchdogConfig(step_budget=4, start_budget=9, pause_budget=3)
    WatchdogConfig(step_budget=4, start_budget=4, pause_budget=4)
    WatchdogConfig(step_budget=0, start_budget=0, pause_budget=0)
