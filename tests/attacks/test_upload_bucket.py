"""A bucket of checkpoints that somebody else has filled: a fresh node passes over what is hostile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.hostile import plant, sign
from tests.trainer.checkpoint.uploads import settle
from tests.trainer.conftest import alone
from tests.trainer.numbers import opened, resumed, save
from trainer.distributed import Ranks

__all__ = ["alone"]
pytestmark = pytest.mark.timeout(60)
HELD = "generator/rank-0.pt"


@pytest.fixture
def bucket(alone: Ranks, tmp_path: Path) -> Path:
    """The checkpoints of steps 10 and 20, whose run has lost its disk."""
    folder = tmp_path / "bucket"
    checkpoints = opened(alone, tmp_path / "first", (f"checkpoint.upload={folder}",), lambda line: None)
    for step in (10, 20):
        save(checkpoints, step)
        settle(checkpoints)
    shutil.rmtree(tmp_path / "first")
    return folder


def marker(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the files that COMPLETE lists."""
    file = checkpoint / "COMPLETE"
    content = json.loads(file.read_text())
    change(content["files"])
    file.write_text(json.dumps(content))


def lists(name: str) -> Callable[[Path, Path], None]:
    """COMPLETE lists one file more, by this name."""

    def attack(newest: Path, mark: Path) -> None:
        marker(newest, lambda files: files.update({name: dict(files["state.json"])}))

    return attack


def endless(newest: Path, mark: Path) -> None:
    """An object of a terabyte, of which the marker says 1000 bytes."""
    with (newest / HELD).open("r+b") as file:
        file.truncate(2**40)


def claimed(newest: Path, mark: Path) -> None:
    """The marker says an exabyte."""
    marker(newest, lambda files: files[HELD].update(bytes=2**60))


def long_marker(newest: Path, mark: Path) -> None:
    with (newest / "COMPLETE").open("r+b") as file:
        file.truncate(2**40)


def command(newest: Path, mark: Path) -> None:
    plant(newest / HELD, mark)
    sign(newest)


def command_beside(newest: Path, mark: Path) -> None:
    """DeepSpeed would find it by its name. It is not listed, so it is not fetched."""
    shutil.copy(newest / HELD, newest / "generator" / "mp_rank_00_model_states.pt")
    plant(newest / "generator" / "mp_rank_00_model_states.pt", mark)
    (newest / "state.json").write_text("{}")


def deep_state(newest: Path, mark: Path) -> None:
    (newest / "state.json").write_text('{"step":' + "[" * 100_000 + "]" * 100_000 + "}")
    sign(newest)


def steps_beyond_numbers(newest: Path, mark: Path) -> None:
    (newest / "state.json").write_text("{}")
    shutil.copytree(newest, newest.with_name("step-" + "9" * 40))


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "a file that is not there": lists("generator/absent.pt"),
    "a file outside": lists("../../outside.pt"),
    "a file of the system": lists("/etc/passwd"),
    "a file in a file": lists("state.json/x"),
    "a name of half a character": lists("generator/\ud800.pt"),
    "a name that is too long": lists("x" * 300),
    "a name with control characters": lists("\x1b]0;title\x07.pt"),
    "itself": lists("COMPLETE"),
    "an object without an end": endless,
    "a size that is claimed": claimed,
    "a marker without an end": long_marker,
    "a command": command,
    "a command beside": command_beside,
    "a state that is nested deeply": deep_state,
    "a step beyond numbers": steps_beyond_numbers,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_fresh_node_passes_it_over(name: str, bucket: Path, alone: Ranks, tmp_path: Path) -> None:
    said: list[str] = []
    mark = tmp_path / "CODE-WAS-RUN"
    ATTACKS[name](bucket / "step-00000020", mark)
    fresh = opened(alone, tmp_path / "fresh", (f"checkpoint.upload={bucket}",), said.append)
    assert resumed(fresh) == 10
    assert not mark.exists()
    assert any("step-00000020" in line and line.startswith("warning: ") for line in said)
    assert all("\n" not in line for line in said)
    assert {path.name for path in tmp_path.iterdir()} <= {"bucket", "fresh"}
    assert sum(file.stat().st_blocks for file in (tmp_path / "fresh").rglob("*")) * 512 < 2**22
