"""SIGKILL while training: who x when x ZeRO stage. The same command again, and every logged digit is as undisturbed.

    python -m pytest tests/faults/test_training.py       # all of them are slow

One test is one ZeRO stage and one kind of moment. In it a run is killed four times, each time other processes at
another call that a fixed seed chooses, and then left alone. So what goes on is always a run that was itself cut off.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.training import losses
from tests.data_pipeline.store.gateway import Gateway
from tests.faults import trainings
from tests.faults.trainings import MOMENTS, POINTS_OF_A_SAVE, STEPS, VICTIMS, Command, Hold, disturb, finish, result
from tests.tools.model_files import weight_bytes

Undisturbed = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.write_settings(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def undisturbed_at(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What a run at a ZeRO stage gives when nothing happens to it."""

    @cache
    def at(stage: int) -> dict[str, Any]:
        output = tmp_path_factory.mktemp("undisturbed") / "run"
        finish(Command(trainings.node, settings, [f"zero.stage={stage}"]), output)
        found = result(output)
        assert list(found["losses"]) == list(range(1, STEPS + 1))
        return found

    return at


def kill_and_go_on(command: Command, folder: Path, kills: list[tuple[str, str]], seed: int) -> dict[str, Any]:
    """Kill (whom, when) after (whom, when), then let the run end; what each run left is held against the next."""
    output, choice = folder / "run", random.Random(seed)
    seen: dict[int, Any] = {}
    for number, (whom, when) in enumerate(kills):
        hold = Hold.choose(when, choice, folder / f"hold-{number}")
        disturb(command, output, whom, hold)
        again = losses(output)
        assert {step: again[step] for step in seen if step in again} == {
            step: row for step, row in seen.items() if step in again
        }, f"{whom} killed at {hold}"
        seen |= again
    trained = (output / "checkpoints" / f"step-{STEPS:08d}" / "COMPLETE").is_file()
    text = finish(command, output)
    assert ("going on after step" in text) is not trained, "a start with no step left to do only exports"
    complete = {path.parent.name for path in (output / "checkpoints").glob("step-*/COMPLETE")}
    assert {path.parent.name for path in (folder / "remote").glob("step-*/COMPLETE")} == complete
    assert complete == {"step-00000018", f"step-{STEPS:08d}"}
    return result(output)


@pytest.mark.slow
def test_killed_in_the_second_save(settings: Path, undisturbed_at: Undisturbed, tmp_path: Path) -> None:
    """The short version of `test_killed`: the seed chooses the moment before the marker is written."""
    command = Command(trainings.node, settings, ["zero.stage=2", f"checkpoint.upload={tmp_path / 'remote'}"])
    assert kill_and_go_on(command, tmp_path, [("everything", "in a save")], seed=0) == undisturbed_at(2)


@pytest.mark.slow
def test_killed_at_ten_points_of_a_save_through_memory(settings: Path, tmp_path: Path) -> None:
    """The undisturbed run waits for the disk, so its numbers are those of a training that never saves in between.

    A start that was killed in its first save begins again at the checkpoint before, so the ten kills meet few steps.
    """
    waiting = Command(trainings.node, settings, ["zero.stage=2", "checkpoint.staging=", "steps=8"])
    (tmp_path / "undisturbed").mkdir()
    finish(waiting, tmp_path / "undisturbed" / "run")
    memory, output = tmp_path / "memory", tmp_path / "disturbed" / "run"
    memory.mkdir()
    output.parent.mkdir()
    command = Command(trainings.node, settings, ["zero.stage=2", f"checkpoint.staging={memory}", "steps=8"])
    left, said = [], []
    for number, (function, call) in enumerate(POINTS_OF_A_SAVE):
        folder = tmp_path / f"hold-{number}"
        folder.mkdir()
        disturb(command, output, VICTIMS[number % 2 * 3], Hold(function, call, folder))  # rank 0, or everything
        said.append("has left in memory" in (output.parent / "log").read_text())
        left.append(any(path.is_file() for path in memory.rglob("*")))
    said.append("has left in memory" in finish(command, output))
    assert left[4:7] == [True] * 3, "a killed run leaves its memory"
    assert said == [False, *left], "the next start removes what was left, and says so"
    assert list(memory.iterdir()) == []
    assert result(output) == result(tmp_path / "undisturbed" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("when", list(MOMENTS))
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_killed(settings: Path, undisturbed_at: Undisturbed, tmp_path: Path, stage: int, when: str) -> None:
    seed = 10 * stage + list(MOMENTS).index(when)
    victims = random.Random(seed).sample(VICTIMS, len(VICTIMS))
    words = [f"zero.stage={stage}", f"checkpoint.upload={tmp_path / 'remote'}"]
    command = Command(trainings.deepspeed, settings, words)
    assert kill_and_go_on(command, tmp_path, [(whom, when) for whom in victims], seed) == undisturbed_at(stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_killed_before_and_after_training(
    settings: Path, undisturbed_at: Undisturbed, tmp_path: Path, stage: int
) -> None:
    """In the start, while resuming, and while the model is exported."""
    seed = 40 + stage
    a, b, c, d = random.Random(seed).sample(VICTIMS, len(VICTIMS))
    kills = [(a, "in the start"), (b, "in an upload"), (c, "while resuming"), (d, "in the start")]
    kills += [(a, "while resuming"), (b, "in the export"), (c, "in the export")]
    words = [f"zero.stage={stage}", f"checkpoint.upload={tmp_path / 'remote'}"]
    command = Command(trainings.deepspeed, settings, words)
    assert kill_and_go_on(command, tmp_path, kills, seed) == undisturbed_at(stage)


@pytest.mark.slow
@pytest.mark.s3
def test_fresh_node_goes_on_from_s3(
    settings: Path, undisturbed_at: Undisturbed, tmp_path: Path, s3_uri: str, s3_gateway: Gateway
) -> None:
    """Everything is killed in the third upload, and the disk is lost."""
    output = tmp_path / "run"
    words = ["zero.stage=1", f"checkpoint.upload={s3_uri}", "checkpoint.keep=5"]
    command = Command(trainings.node, settings, words, s3_gateway.environment())
    (tmp_path / "hold").mkdir()
    # of 12 files in each checkpoint: two that each rank writes besides DeepSpeed's four, and the main rank's three
    hold = Hold("data_pipeline.store.s3:S3Store.write", 30, tmp_path / "hold")
    disturb(command, output, "everything", hold)
    shutil.rmtree(output)
    text = finish(command, output)
    assert re.search(r"going on after step (6|9|12),", text)
    expected = undisturbed_at(1)
    assert losses(output) == {step: expected["losses"][step] for step in losses(output)}
    assert losses(output).keys() == set(range(min(losses(output)), STEPS + 1))
    assert weight_bytes(output / "model") == expected["model"]
    assert s3_gateway.secret_key not in text
