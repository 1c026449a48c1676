"""A training of two ranks whose disk fills up, or becomes read-only, in the middle: one line, and the same command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import trainings
from tests.faults.disks import ext4_disk, make_read_only, make_writable, needs_root, small_disk
from tests.faults.trainings import Command, Training, finish, result

pytestmark = pytest.mark.slow
MARGIN = 20_000
"""Bytes that are left on the full disk: some lines of metrics, and no checkpoint."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    settings = trainings.write_settings(tmp_path_factory.mktemp("settings"))
    return Command(trainings.node, settings, ["zero.stage=2", "steps=60"])


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(command, output)
    return result(output)


def failed(training: Training, *reasons: str) -> None:
    """Wait for its end, which must be status 1 and one line with a reason, whatever the number of ranks."""
    training.wait_until(lambda: training.process.poll() is not None, "the end")
    assert training.process.returncode == 1, training.text[-4000:]
    assert "Traceback" not in training.text, training.text[-6000:]
    lines = [line for line in training.text.splitlines() if any(reason in line for reason in reasons)]
    assert len(lines) == 1, training.text[-4000:]
    assert "the same command goes on from the newest checkpoint" in lines[0]


def begun(command: Command, output: Path) -> Training:
    """A training that has completed its first checkpoint."""
    training = Training(command, output, None)
    training.wait_until(lambda: any(output.glob("checkpoints/step-*/COMPLETE")), "a checkpoint", alive=True)
    return training


@needs_root
def test_a_disk_that_fills_up(command: Command, undisturbed: dict[str, object], tmp_path: Path) -> None:
    with small_disk(tmp_path / "run", "32m") as disk:  # the log lies beside it
        training = begun(command, disk)
        try:
            with (disk / "of-somebody-else").open("wb", buffering=0) as file:
                file.truncate(0)
                try:
                    while True:
                        file.write(bytes(MARGIN))
                except OSError:
                    pass
            failed(training, "No space left on device")
        finally:
            training.end()
        (disk / "of-somebody-else").unlink()
        assert "going on after step" in finish(command, disk)
        assert result(disk) == undisturbed


@needs_root
def test_a_disk_that_becomes_read_only(command: Command, undisturbed: dict[str, object], tmp_path: Path) -> None:
    with ext4_disk(tmp_path / "run", tmp_path / "image", 64) as disk:
        training = begun(command, disk)
        try:
            make_read_only(disk)
            failed(training, "Read-only file system")
        finally:
            training.end()
        make_writable(disk, tmp_path / "image")
        assert "going on after step" in finish(command, disk)
        assert result(disk) == undisturbed
