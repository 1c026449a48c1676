"""SIGKILL to a fork and the same command again: the numbers of its parent, whose steps it goes on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults import trainings
from tests.faults.trainings import STEPS, Command, Hold, disturb, finish, result

FORKED = 9
POINTS = [
    ("trainer.checkpoint.writer:write_marker", 1),  # the fork's own first checkpoint is not complete
    ("trainer.engine.engine:Engine.backward", 3),  # in its second step
    ("trainer.checkpoint.background_save:copy_files", 1),  # its first save after steps of its own
]


@pytest.mark.slow
def test_killed_before_and_after_its_first_checkpoint(tmp_path: Path) -> None:
    command = Command(trainings.node, trainings.write_settings(tmp_path), ["zero.stage=2", "checkpoint.keep_every=9"])
    parent, fork = tmp_path / "parent", tmp_path / "fork"
    finish(command, parent)
    expected = result(parent)
    forking = Command(trainings.node, command.settings, [*command.words, f"fork_from={parent}@{FORKED}"])
    for number, (function, call) in enumerate(POINTS):
        folder = tmp_path / f"hold-{number}"
        folder.mkdir()
        disturb(forking, fork, "everything", Hold(function, call, folder))
        if number == 1:
            shutil.move(parent, tmp_path / "gone")  # the fork has a checkpoint of its own by now
    finish(forking, fork)
    found = result(fork)
    assert found.pop("losses") == {step: expected["losses"][step] for step in range(FORKED + 1, STEPS + 1)}
    assert found == {name: expected[name] for name in found}
