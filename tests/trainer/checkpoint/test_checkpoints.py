"""Checkpoints of one rank on real files: damage of every kind, falling back, and what is never deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.read.loader import Position
from data_pipeline.store.files import TEMPORARY
from tests.tools.file_limit import file_limit
from tests.trainer.numbers import LOADER, Number, contents, flip_bit, names, opened, resumed, save, truncate
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.distributed import Ranks

Open = Callable[..., Checkpoints]


@pytest.fixture
def reopened(alone: Ranks, tmp_path: Path, messages: list[str]) -> Open:
    """The checkpoints of one run, as a newly started process sees them."""
    return lambda *settings: opened(alone, tmp_path / "run", settings, messages.append)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("generator/rank-0.pt", flip_bit, "has another content than was written (sha256)"),
    ("generator/rank-0.pt", truncate, "bytes, but"),
    ("state.json", flip_bit, "has another content than was written (sha256)"),
    ("rng-00000.pt", Path.unlink, "is missing"),
    ("COMPLETE", truncate, "COMPLETE cannot be understood"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damaged_newest_is_named_and_kept_and_the_one_before_it_used(
    reopened: Open, messages: list[str], name: str, damage: Callable[[Path], None], message: str
) -> None:
    save(reopened(), 2, 4, 6)
    directory = reopened().folder / "step-00000006"
    damage(directory / name)
    kept = contents(directory)

    assert resumed(reopened()) == 4
    text = "\n".join(messages)
    assert f"warning: {directory / name}" in text
    assert message in text
    assert "step-00000006 is damaged and passed over" in text
    aside = directory.with_name("damaged-step-00000006")
    assert f"{directory} is now {aside}" in text
    assert contents(aside) == kept
    messages.clear()
    assert resumed(reopened()) == 4  # and again, without another word
    assert messages == []
    save(reopened(), 6)
    assert resumed(reopened()) == 6
    assert aside.is_dir()


def test_missing_marker_is_a_checkpoint_that_was_cut_off(reopened: Open, messages: list[str]) -> None:
    save(reopened(), 2, 4)
    directory = reopened().folder / "step-00000004"
    (directory / "COMPLETE").unlink()
    assert resumed(reopened()) == 2
    assert messages == [
        f"warning: {directory} has no COMPLETE: it was cut off while it was written, and is not used",
    ]
    assert directory.is_dir()
    save(reopened(), 3)
    assert messages[1:] == [f"removing {directory}, which was cut off while it was written"]
    assert names(reopened().folder) == ["step-00000002", "step-00000003"]


def test_a_full_disk_is_named_and_the_next_start_makes_room(reopened: Open, messages: list[str]) -> None:
    save(reopened(), 2)
    directory = reopened().folder / "step-00000004"
    with file_limit(1000), pytest.raises(RuntimeError, match=rf"(?s){directory} could not be .* disk has \d+ MB left"):
        save(reopened("checkpoint.staging="), 4)
    assert contents(directory).keys() == {"generator/rank-0.pt"}
    assert resumed(reopened()) == 2
    reopened().remove_leftovers()
    assert messages[-1] == f"removing {directory}, which was cut off while it was written"
    assert names(reopened().folder) == ["step-00000002"]


def test_several_damaged_ones(reopened: Open, messages: list[str]) -> None:
    save(reopened("checkpoint.keep=4"), 2, 4, 6, 8)
    folder = reopened().folder
    truncate(folder / "step-00000004" / "rng-00000.pt")
    flip_bit(folder / "step-00000008" / "config.yaml")
    shutil.rmtree(folder / "step-00000006" / "generator")
    assert resumed(reopened()) == 2
    assert names(reopened().folder) == [*(f"damaged-step-0000000{n}" for n in (4, 6, 8)), "step-00000002"]


def test_all_damaged_is_an_error_that_lists_them_and_changes_nothing(reopened: Open) -> None:
    save(reopened(), 2, 4)
    folder = reopened().folder
    truncate(folder / "step-00000002" / "state.json")
    flip_bit(folder / "step-00000004" / "COMPLETE")
    (folder / "step-00000004" / "COMPLETE").write_text("{")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"every checkpoint .* is damaged: .*4/COMPLETE.*2/state\.json has"):
            reopened().newest()
    assert names(reopened().folder) == ["step-00000002", "step-00000004"]


def test_only_cut_off_ones_is_a_fresh_start_that_says_so(reopened: Open, messages: list[str]) -> None:
    save(reopened(), 2)
    (reopened().folder / "step-00000002" / "COMPLETE").unlink()
    assert resumed(reopened()) is None
    assert "has no COMPLETE" in messages[0]


def test_newest_and_multiples_stay(reopened: Open) -> None:
    save(reopened("checkpoint.keep=2", "checkpoint.keep_every=4"), *range(1, 12))
    assert names(reopened().folder) == [f"step-{step:08d}" for step in (4, 8, 10, 11)]


class Cut(Number):
    """Its disk is full after the first file."""

    def save(self, directory: Path) -> None:
        super().save(directory)
        raise OSError("no space")


def test_a_step_that_is_saved_anew_has_nothing_of_the_first_time(reopened: Open) -> None:
    """After a rollback, or with fewer ranks: a file that is not written again would be taken for one of this time."""
    save(reopened(), 2, 4)
    directory = reopened().folder / "step-00000004"
    whole = contents(directory)
    (directory / "ema-00001.pt").write_bytes(b"of another rank")
    save(reopened(), 4)
    assert contents(directory) == whole
    with pytest.raises(RuntimeError, match="no space"):
        reopened().save(4, Position(0, 16), Cut(5), LOADER, wait=True)
    assert not (directory / "COMPLETE").exists()
    assert resumed(reopened()) == 2


def test_upload_of_the_checkpoints_to_their_own_place_is_refused(reopened: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is where checkpoints are"):
        reopened(f"checkpoint.upload={tmp_path}/run/checkpoints")


def test_all_has_reached_the_disk_before_the_marker_appears(reopened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves the bytes and the names that had been flushed."""
    checkpoints = reopened()
    directory = checkpoints.folder / "step-00000002"
    flushed: list[tuple[Path, int | list[str], bool]] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        state = names(path) if path.is_dir() else path.stat().st_size
        fsync(handle)
        flushed.append((path, state, (directory / "COMPLETE").exists()))

    monkeypatch.setattr(os, "fsync", noted)
    save(checkpoints, 2)
    before = {path: state for path, state, complete in flushed if not complete}
    (temporary,) = [path for path in before if path.name.startswith(TEMPORARY)]
    marker = (directory / "COMPLETE").stat().st_size
    sizes = {directory / name: len(content) for name, content in contents(directory).items() if name != "COMPLETE"}
    assert before == sizes | {
        temporary: marker,
        directory / "generator": ["rank-0.pt"],
        directory: ["config.yaml", "generator", "rng-00000.pt", "state.json"],
        checkpoints.folder: ["step-00000002"],
    }
    assert [path for path, _, complete in flushed if complete] == [directory]


def test_marker_lists_every_file(reopened: Open) -> None:
    save(reopened(), 2)
    marker = json.loads((reopened().folder / "step-00000002" / "COMPLETE").read_text())
    assert set(marker["files"]) == {"config.yaml", "generator/rank-0.pt", "rng-00000.pt", "state.json"}
