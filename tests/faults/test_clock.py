"""The clock of the day jumps in mid-run, as after a wrong NTP answer: nothing is measured by it, so nothing changes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults import builds, trainings
from tests.faults.conftest import Undisturbed
from tests.faults.trainings import Command, Training, finish, result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc compiles the clock that jumps"),
]
JUMPS = [-86_400, 86_400]
"""Seconds: a day back, a day ahead."""


@pytest.fixture
def clock(tmp_path: Path) -> tuple[Path, Mapping[str, str]]:
    """The file whose number of seconds is added to the clock, and the environment of processes that read it."""
    library, jump = tmp_path / "clock.so", tmp_path / "jump"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(jump)}
    jump.write_text("-1000000")
    script = "import time; print(time.time(), time.monotonic())"
    told = subprocess.run(
        ["python3", "-c", script],
        env=environment | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    day, monotonic = map(float, told.stdout.split())
    assert abs(time.time() - 1_000_000 - day) < 600
    assert abs(time.monotonic() - monotonic) < 600
    jump.write_text("0")
    return jump, environment


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_build_is_the_same(
    seconds: int, clock: tuple[Path, Mapping[str, str]], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    jump, environment = clock
    output = tmp_path / "output"
    command = builds.build_command(undisturbed.source, output, "run.cpus=2")
    with builds.started(command, tmp_path / "log", environment) as build:
        build.wait_until(lambda: output.exists() and builds.committed(output) >= 2)
        jump.write_text(str(seconds))
        assert build.wait() == 0, build.text()
    builds.assert_same_and_proven(output, undisturbed.fingerprint)


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_training_is_the_same(seconds: int, clock: tuple[Path, Mapping[str, str]], tmp_path: Path) -> None:
    jump, environment = clock
    settings = trainings.write_settings(tmp_path)
    command = Command(trainings.node, settings, ["zero.stage=2", "max_hours=0.5"])
    (tmp_path / "undisturbed").mkdir()
    finish(command, tmp_path / "undisturbed" / "run")
    output = tmp_path / "jumped" / "run"
    output.parent.mkdir()
    training = Training(Command(command.launcher, settings, command.words, environment), output, None)
    try:
        training.wait_until(lambda: any(output.glob("checkpoints/step-*/COMPLETE")), "a checkpoint", alive=True)
        jump.write_text(str(seconds))
        training.wait_until(lambda: training.process.poll() is not None, "the end")
        assert training.process.returncode == 0, training.text[-4000:]
    finally:
        training.end()
    assert result(output) == result(tmp_path / "undisturbed" / "run")
