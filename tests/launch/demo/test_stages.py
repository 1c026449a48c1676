"""Stages with real processes: skipping, failing, and stopping everything that was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.demo.stages import Runner, Stage, StageFailed, group_members, run_in_group, shown

ROOT = Path(__file__).parents[3]


def writing(path: Path) -> Stage:
    program = f"open({str(path)!r}, 'a').write('x')"
    return Stage("write", [sys.executable, "-c", program], done=path.is_file)


def test_a_finished_stage_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        runner = Runner(tmp_path, ROOT)
        runner.run(writing(tmp_path / "result"))
        assert [record.title for record in runner.records] == ["write"]
    assert (tmp_path / "result").read_text() == "x"
    assert "done by an earlier run" in capfd.readouterr().out
    (tmp_path / "result").unlink()
    Runner(tmp_path, ROOT).run(writing(tmp_path / "result"))
    assert (tmp_path / "result").is_file()


def test_an_error_or_a_missing_result_stops_the_demo(tmp_path: Path) -> None:
    runner = Runner(tmp_path, ROOT)
    with pytest.raises(StageFailed, match="ended with status 3"):
        runner.run(Stage("fail", [sys.executable, "-c", "raise SystemExit(3)"], done=lambda: True))
    with pytest.raises(StageFailed, match="ended with status 0"):
        runner.run(Stage("lie", [sys.executable, "-c", ""], done=lambda: False))


def test_commands_are_shown_as_one_would_type_them() -> None:
    stage = Stage("x", [str(ROOT / "launch" / "a b.py"), "key=1 2"], done=lambda: True, environment={"A": "1"})
    assert shown(stage, ROOT) == "A=1 'launch/a b.py' 'key=1 2'"


STAGE = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from launch.demo import stages
from launch.demo.stages import Interrupted, run_in_group
members = stages.group_members
def looks(group):
    found = members(group)
    with open("looks", "a") as file:
        file.write("x")
    return found
stages.group_members = looks
try:
    run_in_group([sys.executable, "-c", {child!r}], Path({folder!r}), {{}}, grace={grace}, listener={listener!r})
except Interrupted:
    print("interrupted", flush=True)
    sys.exit(130)
"""
# A parent with a grandchild, like a launcher with a rank; the grandchild writes what happened to it. It takes so long
# to save that the stage has to look several times whether anybody of its group is left.
POLITE = """
import signal, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", '''
import os, pathlib, signal, sys, time
def stop(number, frame):
    while not os.path.exists("looks") or os.path.getsize("looks") < 4:
        time.sleep(0.01)
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
pathlib.Path("up").touch()
time.sleep(600)
'''])
time.sleep(600)
"""
# A launcher that would print a traceback at an interrupt and waits for its rank, as `deepspeed` does.
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-u", "the/rank.py"]))
"""
RANK = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(pathlib.Path("saved").touch()))
pathlib.Path("up").touch()
time.sleep(600)
"""
DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("up").touch()
time.sleep(600)
"""


def start(tmp_path: Path, child: str, grace: float, listener: str = "") -> subprocess.Popen[str]:
    program = STAGE.format(root=str(ROOT), child=child, folder=str(tmp_path), grace=grace, listener=listener)
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def leftovers(tmp_path: Path) -> list[str]:
    """Command lines of processes whose working folder is the test's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if os.readlink(entry / "cwd") == str(tmp_path):
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_ranks_save_and_leaves_no_orphan(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, POLITE, grace=20)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in output
    assert (tmp_path / "saved").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("listener", ["the/rank.py", "another.py"])
def test_a_launcher_is_not_interrupted_but_its_ranks_are(tmp_path: Path, listener: str) -> None:
    (tmp_path / "the").mkdir()
    (tmp_path / "the" / "rank.py").write_text(RANK)
    process = start(tmp_path, LAUNCHER, grace=20, listener=listener)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    # Without a listener, as before the ranks are started, everybody ends quietly.
    assert (tmp_path / "saved").exists() is (listener == "the/rank.py")
    assert leftovers(tmp_path) == []


def test_what_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, DEAF, grace=0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert leftovers(tmp_path) == []


WATCHED = """
import pathlib, time
try:
    pathlib.Path("up").touch()
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path("saved").touch()
"""


def test_a_killed_demo_takes_its_command_along(tmp_path: Path) -> None:
    process = start(tmp_path, WATCHED, grace=20)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while leftovers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers(tmp_path) == []
    assert (tmp_path / "saved").exists()


def test_what_outlives_its_command_is_killed(tmp_path: Path) -> None:
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
    assert run_in_group([sys.executable, "-c", child], tmp_path, {}) == 0
    assert leftovers(tmp_path) == []
    assert group_members(os.getpgid(0))
