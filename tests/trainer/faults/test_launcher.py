"""Which command started a rank: real process trees of programs that have the names of DeepSpeed's programs."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.faults import launcher
from trainer.faults.launcher import ENDED, Launcher, is_local_launch, is_runner

ROOT = Path(__file__).parents[3]


def rank(folder: Path, before: str = "") -> list[str]:
    """A rank that waits for a file `look`, writes what it finds, waits for a file `again`, and looks again."""
    script = folder / "train.py"
    script.write_text(
        "import sys, time, pathlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from trainer.faults import launcher\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "def wait_for(name):\n"
        "    (folder / (name + '-waits')).touch()\n"
        "    while not (folder / name).exists(): time.sleep(0.01)\n"
        "def write(name, value):\n"
        "    (folder / 'new').write_text(str(value)); (folder / 'new').rename(folder / name)\n"
        "wait_for('look')\n"
        f"{before}"
        "command = launcher.find()\n"
        "write('command', None if command is None else command.process)\n"
        "wait_for('again')\n"
        "write('alive', None if command is None else command.alive())\n"
    )
    return [sys.executable, str(script), "--local_rank=0"]


def tree(folder: Path, options: Sequence[str], before: str = "") -> list[str]:
    """`deepspeed` -> `python -m deepspeed.launcher.launch OPTIONS` -> rank, as command lines show them."""
    package = folder / "stand_ins" / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    for where in (package, package.parent):
        (where / "__init__.py").touch()
    starts = "import subprocess, sys\nprocess = subprocess.Popen({})\nprocess.wait()\n"
    (package / "launch.py").write_text(starts.format(rank(folder, before)))
    launch = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--world_info=e30=", *options, "train.py"]
    (package / "runner.py").write_text(starts.format(launch))
    (folder / "deepspeed").write_text(starts.format(launch))
    return launch


class Tree:
    """A session of processes whose rank looks for its command when the test says so."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(folder / "stand_ins")}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)

    def until(self, name: str) -> str:
        end = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < end, f"waited too long for {name}"
            time.sleep(0.01)
        return (self.folder / name).read_text()

    def kill(self, number: int) -> None:
        """Send the first process a signal, and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(60)

    def look(self) -> str:
        (self.folder / "look").touch()
        return self.until("command")

    def look_again(self) -> str:
        (self.folder / "again").touch()
        return self.until("alive")

    def end(self) -> None:
        for name in ("look", "again"):
            (self.folder / name).touch()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self.process.wait(60)


@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_command_is_seen_whenever_it_comes(tmp_path: Path, how: str, number: int) -> None:
    for moment in ("before the look", "after the look"):
        folder = tmp_path / moment
        folder.mkdir()
        tree(folder, ["--master_port=1"])
        arguments = [str(folder / "deepspeed")] if how == "script" else ["-m", "deepspeed.launcher.runner"]
        below = Tree(folder, [sys.executable, *arguments])
        try:
            below.until("look-waits")
            if moment == "before the look":
                below.kill(number)
                assert below.look() == str(ENDED.process)
            else:
                assert below.look() == str(below.process.pid)
                below.kill(number)
            assert below.look_again() == "False"
        finally:
            below.end()


ENDS_NOW = """
import os
command_line = launcher._command_line
def command_line_of_a_process_that_ends(process):
    launcher._command_line = command_line
    os.kill(process, 9)
    while pathlib.Path("/proc", str(process)).exists(): time.sleep(0.01)
    return command_line(process)
launcher._command_line = command_line_of_a_process_that_ends
"""


def test_the_end_of_the_command_is_seen_in_the_middle_of_the_look(tmp_path: Path) -> None:
    tree(tmp_path, ["--master_port=1"], ENDS_NOW)
    below = Tree(tmp_path, [sys.executable, str(tmp_path / "deepspeed")])
    try:
        below.until("look-waits")
        (tmp_path / "look").touch()
        assert below.process.wait(60) == -signal.SIGKILL
        assert below.look() == str(ENDED.process)
    finally:
        below.end()


def test_a_parent_without_a_command_line_is_given_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process gives its memory back, and its command line with it, before its children get another parent."""
    looks = iter([launcher.Ending(), launcher.Ending(), ENDED])

    def look() -> Launcher:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(launcher, "_find", look)
    assert launcher.find() is ENDED
    looks = itertools.repeat(launcher.Ending())  # it hides its command line, and lives
    monkeypatch.setattr(launcher, "ENDING_S", 0.05)
    assert launcher.find() is None


def test_a_process_that_has_ended_has_no_command_line() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(launcher.Ending):
        launcher._command_line(ended.pid)
    ended.wait()


def test_a_command_that_lives_is_alive(tmp_path: Path) -> None:
    tree(tmp_path, [])
    below = Tree(tmp_path, [sys.executable, str(tmp_path / "deepspeed")])
    try:
        below.until("look-waits")
        assert below.look() == str(below.process.pid)
        assert below.look_again() == "True"
    finally:
        below.end()


@pytest.mark.parametrize("shell", ["waits", "has become the launcher", "has ended"])
def test_a_launcher_that_ssh_started_has_no_command_here(tmp_path: Path, shell: str) -> None:
    launch = " ".join(tree(tmp_path, ["--node_rank=1", "--master_port=1"]))
    line = {
        "waits": f"{launch}; true",
        "has become the launcher": f"exec {launch}",
        "has ended": f"{launch} & sleep 600",
    }
    below = Tree(tmp_path, ["sh", "-c", line[shell]])
    try:
        below.until("look-waits")
        if shell == "has ended":
            below.kill(signal.SIGKILL)
        assert below.look() == "None"
    finally:
        below.end()


@pytest.mark.parametrize("starter", ["a shell", "nothing that is left", "a launcher in a session of its own"])
def test_other_starts(tmp_path: Path, starter: str) -> None:
    """By hand; in the background of a login that has ended; by a line copied from DeepSpeed's log."""
    launch = " ".join(tree(tmp_path, []))
    alone = " ".join(rank(tmp_path)[:-1])
    line = {
        "a shell": f"{alone}; true",
        "nothing that is left": f"{alone} & sleep 600",
        "a launcher in a session of its own": f"setsid {launch} & sleep 600",
    }
    below = Tree(tmp_path, ["sh", "-c", line[starter]])
    try:
        below.until("look-waits")
        if starter != "a shell":
            below.kill(signal.SIGKILL)
        assert below.look() == "None"
    finally:
        below.end()


@pytest.mark.parametrize(
    "line",
    [
        "/venv/bin/python /venv/bin/deepspeed --num_gpus 2 launch/train.py",
        "python -u /venv/bin/ds launch/train.py",
        "python -m deepspeed.launcher.runner --num_gpus 2 launch/train.py",
        "python -u -m deepspeed.launcher.runner launch/train.py",
    ],
)
def test_names_of_the_command(line: str) -> None:
    assert is_runner(line.split())
    assert not is_local_launch(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "bash run.sh",
        "sshd: vidtwin@notty",
        "/sbin/init",
        "python launch/cluster/node.py --nodes 1 -- launch/train.py",
        "python -u -m deepspeed.launcher.launch --world_info=e30= --node_rank=0 --master_addr=node-0 launch/train.py",
        "srun python launch/train.py output=/runs/deepspeed",
    ],
)
def test_what_is_neither_the_command_nor_its_own_launcher(line: str) -> None:
    assert not is_runner(line.split())
    assert not is_local_launch(line.split())


JOINING = """
import os, sys
from trainer import distributed
from trainer.faults.launcher import Launcher, _stat, STARTED, ends_with
command = int(sys.argv[1])
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
os.environ |= {"MASTER_PORT": str(distributed.free_port()), "DS_ACCELERATOR": "cpu"}
print("waits", flush=True)
with ends_with(Launcher(command, _stat(command)[STARTED])):
    distributed.start(10.0)
"""


def test_a_rank_that_waits_for_another_ends_with_the_command() -> None:
    command = subprocess.Popen(["sleep", "600"])
    rank = subprocess.Popen([sys.executable, "-c", JOINING, str(command.pid)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == b"waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(3)
        command.kill()
        command.wait()
        assert rank.wait(60) == 143
    finally:
        for process in (rank, command):
            process.kill()
            process.wait()


def test_a_number_that_another_process_has_now_is_not_the_command() -> None:
    started = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    assert Launcher(os.getpid(), started).alive()
    assert not Launcher(os.getpid(), str(int(started) + 1)).alive()
