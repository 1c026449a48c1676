"""The `deepspeed` command alone is ended, and passes nothing on: all below it ends, and the same command goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.training import losses
from tests.faults import trainings
from tests.faults.trainings import STEPS, Command, Hold, Training, finish, result
from trainer.checkpoint.files import fault, read_marker, steps_in

# In the order in which one run meets them. A call of a rank before which all ranks are held, or a process to wait for.
MOMENTS = [
    "deepspeed.launcher.launch",  # it imports DeepSpeed, and will start ranks
    "launch/train.py",  # ranks have just been started, and import torch
    "trainer.config.loader:load_config",
    "trainer.distributed:start",
    "trainer.run:prepare",
    "trainer.engine.engine:Engine.backward",
    "trainer.checkpoint.checkpoints:Checkpoints.load",
    "trainer.checkpoint.writer:write_marker",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.write_settings(tmp_path_factory.mktemp("settings"))


def end_the_command(command: Command, output: Path, moment: str, number: signal.Signals) -> str:
    """Send the signal to the `deepspeed` command alone, and see every process of the run end; what they printed."""
    folder = output.parent / f"hold-{number.name}-{moment.rpartition(':')[2].replace('/', '-')}"
    folder.mkdir()
    hold = Hold(moment, 2 if "backward" in moment else 1, folder) if ":" in moment else None
    training = Training(command, output, hold)
    try:
        reached: Callable[[], bool] = (
            hold.reached if hold else lambda: any(moment in line for line in below(training).values())
        )
        training.wait_until(reached, moment, alive=True)
        os.kill(training.process.pid, number)
        assert training.process.wait(60) == -number  # at once: it waits for nobody
        if hold:
            assert training.members(), "held ranks have ended"
            hold.release()
        training.wait_until(lambda: not training.members(), f"the end of all after {number.name} at {moment}")
        return training.text
    finally:
        training.end()


def below(training: Training) -> dict[int, str]:
    """Command lines of what the command started."""
    lines = {}
    for process in training.members().keys() - {training.process.pid}:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        # up to the script: a launcher's line names it as well
        lines[process] = os.fsdecode(b" ".join(words[:4]))
    return lines


def whole_steps(output: Path) -> list[int]:
    """Steps of the complete checkpoints, whose every file must be as it was written."""
    steps = steps_in(output / "checkpoints", complete=True)
    for step in steps:
        folder = output / "checkpoints" / f"step-{step:08d}"
        files = read_marker((folder / "COMPLETE").read_text())
        assert [fault(folder / name, entry) for name, entry in files.items()] == [""] * len(files)
    return steps


@pytest.mark.slow
def test_ended_while_the_ranks_start(settings: Path, tmp_path: Path) -> None:
    """The short version; test_train.py does it while they train."""
    command = Command(trainings.deepspeed, settings, [])
    text = end_the_command(command, tmp_path / "run", "trainer.config.loader:load_config", signal.SIGTERM)
    assert "ended before its start, because the deepspeed command has ended" in text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_at_any_moment(settings: Path, tmp_path: Path, number: signal.Signals) -> None:
    output, undisturbed = tmp_path / "run", tmp_path / "undisturbed" / "run"
    undisturbed.parent.mkdir()
    finish(Command(trainings.node, settings, []), undisturbed)
    command = Command(trainings.deepspeed, settings, [])
    done = 0
    for moment in MOMENTS:
        text = end_the_command(command, output, moment, number)
        before, done = done, max(losses(output), default=0)
        assert done < STEPS, f"the run went on after {moment}"
        assert whole_steps(output)[-1:] == ([done] if done else []), moment
        if done > before:  # ranks that have begun save what they have done
            assert f"stopped by end of the deepspeed command after step {done}, which is saved" in text
    assert done > 0
    assert "going on after step" in finish(command, output)
    assert result(output) == result(undisturbed)
