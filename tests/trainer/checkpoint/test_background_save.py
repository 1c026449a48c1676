"""A save through memory: training goes on, the disk follows, and what goes wrong there ends the run."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest

from data_pipeline.read.loader import Position
from tests.tools.file_limit import file_limit
from tests.trainer.numbers import LOADER, Number, contents, names, opened, resumed, save
from tests.trainer.pair import run_two_ranks
from trainer.checkpoint import background_save
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.files import copy_and_digest
from trainer.distributed import Ranks
from trainer.method import Method

PATIENCE_S = 30
Open = Callable[..., Checkpoints]


class Disk:
    """Holds every copy to the disk until it is let go, and notes which checkpoints were complete then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.go = folder, threading.Event()
        self.complete_before: dict[str, list[str]] = {}

    def copy(self, source: Path, target: Path) -> dict[str, Any]:
        """In place of `files.copy_and_digest`."""
        step = next(part for part in target.parts if part.startswith("step-"))
        self.complete_before.setdefault(step, [path.parent.name for path in self.folder.rglob("COMPLETE")])
        assert self.go.wait(PATIENCE_S)
        return copy_and_digest(source, target)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


@pytest.fixture
def reopened(alone: Ranks, tmp_path: Path, memory: Path, messages: list[str]) -> Open:
    """The checkpoints of one run, as a newly started process sees them."""
    return lambda *settings: opened(
        alone, tmp_path / "run", (f"checkpoint.staging={memory}", *settings), messages.append
    )


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    held = Disk(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr(background_save, "copy_and_digest", held.copy)
    yield held
    held.go.set()


def begin(checkpoints: Checkpoints, step: int, state: Number | None = None) -> None:
    """Save, without waiting for the disk."""
    checkpoints.save(step, Position(0, 4 * step), cast(Method[Any], state or Number(step)), LOADER)


def test_training_goes_on_before_anything_is_on_the_disk(reopened: Open, disk: Disk, memory: Path) -> None:
    checkpoints = reopened()
    begin(checkpoints, 2)
    assert "save_seconds" in checkpoints.take_metrics()
    for _ in range(3):
        checkpoints.poll()
        assert list(checkpoints.folder.rglob("*")) == [checkpoints.folder / "step-00000002"]
        assert checkpoints.take_metrics() == {}
    (folder,) = memory.iterdir()
    assert names(folder / "rank-00000") == ["config.yaml", "generator", "rng-00000.pt", "state.json"]
    disk.go.set()
    checkpoints.settle()
    assert list(memory.iterdir()) == []
    assert resumed(reopened()) == 2
    size = sum(len(data) for name, data in contents(checkpoints.folder / "step-00000002").items() if name != "COMPLETE")
    assert checkpoints.take_metrics()["save_bytes"] == size


def test_the_bytes_are_those_of_a_save_that_waits(reopened: Open) -> None:
    checkpoints = reopened()
    save(checkpoints, 2)
    through_memory = contents(checkpoints.folder)
    checkpoints.save(2, Position(0, 8), cast(Method[Any], Number(2)), LOADER, wait=True)
    # the generators' state has moved on by what was drawn since, which is nothing
    assert contents(checkpoints.folder) == through_memory


def test_the_next_save_waits_for_the_last(reopened: Open, disk: Disk) -> None:
    checkpoints = reopened()
    begin(checkpoints, 2)
    threading.Timer(0.2, disk.go.set).start()
    begin(checkpoints, 4)
    checkpoints.settle()
    assert disk.complete_before == {"step-00000002": [], "step-00000004": ["step-00000002"]}
    assert names(checkpoints.folder) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("call", ["poll", "settle", "save", "finish"])
def test_a_full_disk_ends_the_run_with_its_cause(reopened: Open, disk: Disk, memory: Path, call: str) -> None:
    save_first = reopened()
    disk.go.set()
    save(save_first, 2)
    disk.go.clear()
    checkpoints = reopened()
    begin(checkpoints, 4)

    def go_on() -> None:
        disk.go.set()
        if call == "save":
            begin(checkpoints, 6)
        elif call == "finish":
            checkpoints.finish(lambda: False)
        elif call == "settle":
            checkpoints.settle()
        while call == "poll":
            checkpoints.poll()

    directory = checkpoints.folder / "step-00000004"
    with (
        file_limit(1000),
        pytest.raises(RuntimeError, match=rf"{directory} could not .*rank 0: .*File too large.* MB "),
    ):
        go_on()
    assert not (directory / "COMPLETE").exists()
    assert list(memory.iterdir()) == [], "the memory is given back"
    assert resumed(reopened()) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_checkpoint_is_complete_when_the_threads_of_all_ranks_have_ended(
    alone: Ranks, tmp_path: Path, threads: int
) -> None:
    """This rank's has; whether the other one's has, decides. The thread's own group is that of a single rank here."""

    class Two(Ranks):
        def total(self, *counts: float) -> list[float]:
            return [float(threads), 0.0]

    found: list[list[str]] = []
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "a.pt").write_bytes(b"a")
    saving = background_save.BackgroundSave(
        Two(**vars(alone) | {"world_size": 2}), alone, tmp_path / "memory", tmp_path / "disk",
        lambda files: found.append(list(files)),
    )  # fmt: skip
    assert saving.ended(wait=True) == (threads == 2)
    assert found == [["a.pt"]]


def test_moving_files_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """Each file's memory is free before the next one is copied, so that a save never stands there twice."""
    source, target = tmp_path / "memory", tmp_path / "disk"
    content = {"a.bin": b"first", "deeper/b.bin": b"second", "deeper/c.bin": b""}
    for name, data in content.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    left: list[int] = []

    def copy(here: Path, there: Path) -> dict[str, Any]:
        left.append(sum(path.is_file() for path in source.rglob("*")))
        return copy_and_digest(here, there)

    with mock.patch.object(background_save, "copy_and_digest", copy):
        files = background_save.copy_files(source, target)
    assert left == [3, 2, 1]
    assert {name: (target / name).read_bytes() for name in content} == content
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert files == {name: {"bytes": len(data), "sha256": sums[name]} for name, data in content.items()}


def test_without_room_training_waits_and_a_line_says_so_once(reopened: Open, disk: Disk, messages: list[str]) -> None:
    class Large(Number):
        saved_bytes = 10**15

    checkpoints = reopened()
    for step in (2, 4):
        begin(checkpoints, step, Large(step))
        assert (checkpoints.folder / f"step-0000000{step}" / "COMPLETE").exists()
    (line,) = messages
    assert "has no room for a save of the node's 1 rank and their data workers, 1e+06 GB" in line
    assert disk.complete_before == {}


def test_the_line_is_said_again_when_there_was_room_meanwhile(reopened: Open, disk: Disk, messages: list[str]) -> None:
    class Large(Number):
        saved_bytes = 10**15

    disk.go.set()
    checkpoints = reopened()
    for step, kind in ((2, Large), (4, Large), (6, Number), (8, Large)):
        begin(checkpoints, step, kind(step))
        checkpoints.settle()
    assert len([line for line in messages if "has no room for a save" in line]) == 2


def test_memory_that_does_not_exist_is_said(alone: Ranks, tmp_path: Path, messages: list[str]) -> None:
    checkpoints = opened(alone, tmp_path / "run", (f"checkpoint.staging={tmp_path / 'none'}",), messages.append)
    begin(checkpoints, 2)
    assert (checkpoints.folder / "step-00000002" / "COMPLETE").exists()
    (line,) = messages
    assert line.startswith(
        f"checkpoint.staging={tmp_path / 'none'} is not a folder that the ranks can write on every node"
    )


def test_a_start_removes_what_a_killed_run_left_and_nothing_else(
    alone: Ranks, reopened: Open, disk: Disk, memory: Path, messages: list[str], tmp_path: Path
) -> None:
    begin(reopened(), 2)  # the process is killed now
    (mine,) = memory.iterdir()
    begin(opened(alone, tmp_path / "other", (f"checkpoint.staging={memory}",)), 2)
    (other,) = [folder for folder in memory.iterdir() if folder != mine]
    kept = contents(other)
    assert resumed(reopened()) is None
    reopened().remove_leftovers()
    assert f"removing {mine}, which a save that was cut off has left in memory" in messages
    assert list(memory.iterdir()) == [other]
    assert contents(other) == kept


def test_memory_that_fills_up_during_the_save_ends_the_run_with_the_remedy(reopened: Open, memory: Path) -> None:
    with file_limit(1000), pytest.raises(RuntimeError, match=r"memory, .*rank-00000: .*set checkpoint\.staging= "):
        begin(reopened(), 2)
    assert list(memory.iterdir()) == []


def test_two_ranks_complete_a_checkpoint_together(tmp_path: Path) -> None:
    run_two_ranks("tests.trainer.checkpoint.saving_ranks", tmp_path, patience=90)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["early"] == [False] * 20
    assert seen["complete"] == [True, True]
    files = ["COMPLETE", "config.yaml", *(f"generator/rank-{rank}.pt" for rank in (0, 1))]
    assert seen["files"] == [*files, "rng-00000.pt", "rng-00001.pt", "state.json"]
    assert all("could not be written: rank 1: no space" in error for error in seen["errors"])
    assert len(seen["errors"]) == 2
    assert seen["left"] == []
