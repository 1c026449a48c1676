"""SIGKILL to workers and to the driver of an encoding: the same command ends with the bytes of an undisturbed one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.builds import assert_same_and_proven, build, committed, fingerprint, gone, started
from tests.trainer.latents.corpus import MORE, ROWS, build_clips, save_model
from trainer.latents.encoding import TASK_NAME

UNIT_PROCESS = f"ray::{TASK_NAME}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and clips of five units."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "model")
    build_clips(folder, [*ROWS, *MORE])
    return folder


def command(inputs: Path, output: Path) -> list[str]:
    """What a user types; a window at every second frame, so that a unit takes seconds."""
    places = ["--model", str(inputs / "model"), "--shards", str(inputs / "shards"), "--output", str(output)]
    words = ["windows.choose=stride", "windows.every=2", "run.progress_s=0.2", "run.cpus=2"]
    return [sys.executable, "launch/encode_latents.py", *places, *words]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    build(command(inputs, folder / "latents"), folder / "log")
    return fingerprint(folder / "latents")


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(inputs: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    with started(command(inputs, tmp_path / "latents"), tmp_path / "log", unit_process=UNIT_PROCESS) as encoding:
        for _ in range(2):
            encoding.kill_a_unit_process()
        assert encoding.wait() == 0, encoding.text()
    assert_same_and_proven(tmp_path / "latents", undisturbed)


def test_after_the_death_of_the_driver_the_same_command_goes_on(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "latents"
    with started(command(inputs, output), tmp_path / "log", unit_process=UNIT_PROCESS) as encoding:
        encoding.wait_until(lambda: (output / "plan.json").exists() and committed(output) > 0)
        gone(encoding.kill())
    done = {path: path.stat().st_mtime_ns for path in output.glob("units/*.json")}
    assert 0 < len(done) < 5
    build(command(inputs, output), tmp_path / "log2")
    assert_same_and_proven(output, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a committed unit is not encoded again"
