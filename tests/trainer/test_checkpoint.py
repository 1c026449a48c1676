"""Checkpoints of one rank on real files: damage of every kind, falling back, and what is never deleted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from data_pipeline.dataset import ClipLoader, Position
from tests.trainer.cases import tiny_config
from trainer.checkpoint import Checkpoints
from trainer.distributed import Ranks


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """A process group of one, without DeepSpeed."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, 0, torch.device("cpu"), dist.new_group(backend="gloo"))
    dist.destroy_process_group()


class Number:
    """State that is one number, in a file in a folder, as DeepSpeed's are."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def save(self, directory: Path) -> None:
        (directory / "generator").mkdir()
        torch.save(torch.tensor(self.value), directory / "generator" / "states.pt")

    def load(self, directory: Path) -> None:
        self.value = int(torch.load(directory / "generator" / "states.pt", weights_only=True))


class Order:
    """The part of the loader that a checkpoint looks at."""

    identity: dict[str, Any] = {}  # noqa: RUF012

    def check_identity(self, identity: dict[str, Any]) -> None:
        assert identity == {}


LOADER = cast(ClipLoader, Order())
Open = Callable[..., Checkpoints]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def reopened(alone: Ranks, tmp_path: Path, said: list[str]) -> Open:
    """The checkpoints of one run, as a newly started process sees them."""
    return lambda *words: Checkpoints(tiny_config(str(tmp_path / "run"), *words), alone, said.append)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, Position(0, 4 * step), Number(step), LOADER)


def resumed(checkpoints: Checkpoints) -> int | None:
    """The step that a run goes on from."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    checkpoints.check(newest, LOADER)
    number = Number()
    step, position = checkpoints.load(newest, number)
    assert number.value == step
    assert position == Position(0, 4 * step)
    return step


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.directory.iterdir())


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("generator/states.pt", flip_bit, "has another content than was written (sha256)"),
    ("generator/states.pt", truncate, "bytes, but"),
    ("state.json", flip_bit, "has another content than was written (sha256)"),
    ("rng-00000.pt", Path.unlink, "is missing"),
    ("COMPLETE", truncate, "COMPLETE cannot be understood"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_damaged_newest_is_named_and_kept_and_the_one_before_it_used(
    reopened: Open, said: list[str], name: str, damage: Callable[[Path], None], words: str
) -> None:
    save(reopened(), 2, 4, 6)
    directory = reopened().directory / "step-00000006"
    damage(directory / name)
    kept = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    assert resumed(reopened()) == 4
    text = "\n".join(said)
    assert f"warning: {directory / name}" in text
    assert words in text
    assert "step-00000006 is damaged and passed over" in text
    aside = directory.with_name("damaged-step-00000006")
    assert f"{directory} is now {aside}" in text
    assert {aside / path.relative_to(directory): data for path, data in kept.items()} == {
        path: path.read_bytes() for path in aside.rglob("*") if path.is_file()
    }
    said.clear()
    assert resumed(reopened()) == 4  # and again, without another word
    assert said == []
    save(reopened(), 6)
    assert resumed(reopened()) == 6
    assert aside.is_dir()


def test_missing_marker_is_a_checkpoint_that_was_cut_off(reopened: Open, said: list[str]) -> None:
    save(reopened(), 2, 4)
    directory = reopened().directory / "step-00000004"
    (directory / "COMPLETE").unlink()
    assert resumed(reopened()) == 2
    assert said == [
        f"warning: {directory} has no COMPLETE: it was cut off while it was written, and is not used",
    ]
    assert directory.is_dir()
    save(reopened(), 3)
    assert said[1:] == [f"removing {directory}, which was cut off while it was written"]
    assert names(reopened()) == ["step-00000002", "step-00000003"]


def test_several_damaged_ones(reopened: Open, said: list[str]) -> None:
    save(reopened("checkpoint.keep=4"), 2, 4, 6, 8)
    folder = reopened().directory
    truncate(folder / "step-00000004" / "rng-00000.pt")
    flip_bit(folder / "step-00000008" / "config.yaml")
    shutil.rmtree(folder / "step-00000006" / "generator")
    assert resumed(reopened()) == 2
    assert names(reopened()) == [*(f"damaged-step-0000000{n}" for n in (4, 6, 8)), "step-00000002"]


def test_all_damaged_is_an_error_that_lists_them_and_changes_nothing(reopened: Open) -> None:
    save(reopened(), 2, 4)
    folder = reopened().directory
    truncate(folder / "step-00000002" / "state.json")
    flip_bit(folder / "step-00000004" / "COMPLETE")
    (folder / "step-00000004" / "COMPLETE").write_text("{")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"every checkpoint .* is damaged: .*4/COMPLETE.*2/state\.json has"):
            reopened().newest()
    assert names(reopened()) == ["step-00000002", "step-00000004"]


def test_only_cut_off_ones_is_a_fresh_start_that_says_so(reopened: Open, said: list[str]) -> None:
    save(reopened(), 2)
    (reopened().directory / "step-00000002" / "COMPLETE").unlink()
    assert resumed(reopened()) is None
    assert "has no COMPLETE" in said[0]


def test_newest_and_multiples_stay(reopened: Open) -> None:
    save(reopened("checkpoint.keep=2", "checkpoint.keep_every=4"), *range(1, 12))
    assert names(reopened()) == [f"step-{step:08d}" for step in (4, 8, 10, 11)]


def test_upload_of_the_checkpoints_to_their_own_place_is_refused(reopened: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is where checkpoints are"):
        reopened(f"checkpoint.upload={tmp_path}/run/checkpoints")


def test_marker_lists_every_file(reopened: Open) -> None:
    save(reopened(), 2)
    marker = json.loads((reopened().directory / "step-00000002" / "COMPLETE").read_text())
    assert set(marker["files"]) == {"config.yaml", "generator/states.pt", "rng-00000.pt", "state.json"}
