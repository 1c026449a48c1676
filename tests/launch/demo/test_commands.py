"""Commands as real processes: skipped when done, refused when they fail, and stopped with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.demo.commands import CommandFailed, Commands, group_members, run_command, shown

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60


def writing(path: Path) -> list[str]:
    """A command that appends an x to a file."""
    return [sys.executable, "-c", f"open({str(path)!r}, 'a').write('x')"]


def test_a_finished_command_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result"
    for _ in range(2):
        commands = Commands(tmp_path, ROOT)
        commands.run("write", writing(result), result)
        assert [record.title for record in commands.records] == ["write"]
    assert result.read_text() == "x"
    assert "done by an earlier run" in capfd.readouterr().out
    result.unlink()
    Commands(tmp_path, ROOT).run("write", writing(result), result)
    assert result.is_file()


def test_an_error_or_a_missing_result_stops_the_demo(tmp_path: Path) -> None:
    commands = Commands(tmp_path, ROOT)
    for _ in range(2):  # the record of a failed command does not count as done
        with pytest.raises(CommandFailed, match="ended with status 3"):
            commands.run("fail", [sys.executable, "-c", "raise SystemExit(3)"], Path(__file__))
    with pytest.raises(CommandFailed, match="ended with status 0"):
        commands.run("lie", [sys.executable, "-c", ""], tmp_path / "result")
    assert commands.records == []


def test_commands_are_shown_as_one_would_type_them() -> None:
    command = [str(ROOT / "launch" / "a b.py"), "key=1 2"]
    assert shown(command, {"A": "1"}, ROOT) == "A=1 'launch/a b.py' 'key=1 2'"


DEMO = """
import signal, sys; sys.path.insert(0, {root!r})
from pathlib import Path
from launch.demo import __main__, run
from launch.demo.commands import run_command
def demo(output, source, overrides):
    run_command([sys.executable, "-c", {child!r}], Path({folder!r}), {{}}, grace={grace})
run.demo = demo
sys.exit(__main__.main([]))
"""
# A launcher that waits for its rank, as `deepspeed` does. The rank needs half a second for its checkpoint.
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", '''
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("up").touch()
time.sleep(600)
''']))
"""
DEAF = """
import pathlib, signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
pathlib.Path("up").touch()
time.sleep(600)
"""


def start(tmp_path: Path, child: str, grace: float) -> subprocess.Popen[str]:
    """`python -m launch.demo` with one command, which has come up."""
    program = DEMO.format(root=str(ROOT), child=child, folder=str(tmp_path), grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes whose working folder is `folder`."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if os.readlink(entry / "cwd") == str(folder):
                    lines.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_lets_the_ranks_save_and_leaves_no_orphan(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, LAUNCHER, grace=20)
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "stopping: what is finished is kept" in output
    # and no traceback of the launcher
    assert errors == "launch.demo: interrupted; the same command goes on from here\n"
    assert (tmp_path / "saved").exists()
    assert processes_in(tmp_path) == []


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, DEAF, grace=0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert processes_in(tmp_path) == []


def test_a_second_interrupt_ends_the_waiting(tmp_path: Path) -> None:
    process = start(tmp_path, DEAF, grace=600)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "once more to stop at once" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert processes_in(tmp_path) == []


def test_what_outlives_its_command_is_ended(tmp_path: Path) -> None:
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
    assert run_command([sys.executable, "-c", child], tmp_path, {}) == 0
    assert processes_in(tmp_path) == []
    assert group_members(os.getpgid(0))
