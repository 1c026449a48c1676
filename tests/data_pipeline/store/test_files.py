"""A folder or a file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.store.files import atomic_file, atomic_folder
from tests.tools.file_limit import file_limit


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "weights").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_replaced_and_a_full_one_refused(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("1")
    with pytest.raises(OSError, match="not empty"), atomic_folder(target) as folder:
        (folder / "weights").write_text("2")
    assert (target / "weights").read_text() == "1"


def test_a_link_to_an_empty_folder_stays_one(tmp_path: Path) -> None:
    """As of a name for a folder on a larger disk."""
    (tmp_path / "large").mkdir()
    link = tmp_path / "model"
    link.symlink_to("large")
    with atomic_folder(link) as folder:
        (folder / "weights").write_text("1")
    assert link.is_symlink()
    assert (tmp_path / "large" / "weights").read_text() == "1"


def test_the_current_folder_is_filled_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    monkeypatch.chdir(target)
    with atomic_folder(Path()) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("1")
    assert Path("inner", "weights").read_text() == "1"
    with pytest.raises(OSError, match="not empty"), atomic_folder(Path()) as folder:
        (folder / "inner").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_nothing_and_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        raise ZeroDivisionError((folder / "half").write_text("1"))
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()  # as a killed writer leaves it
    (folder / "of another export").touch()
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("1")
    assert [path.name for path in target.iterdir()] == ["weights"]


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="File too large") as told,
        file_limit(100),
        atomic_file(tmp_path / "a.json") as new,
    ):
        new.write_bytes(bytes(101))
    assert told.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
