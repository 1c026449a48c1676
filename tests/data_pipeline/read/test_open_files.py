"""Files that stay open: the right bytes, no more of them than allowed, and a fresh start after an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.read import open_files
from data_pipeline.read.open_files import OpenFiles
from data_pipeline.store.local import LocalStore


def open_below(folder: Path) -> list[str]:
    """The files of a folder that this process has open, as the kernel says."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sorted(Path(link).name for link in links if link.startswith(f"{folder}/"))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    for number in range(5):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 10 + bytes(range(10)))
    return LocalStore(tmp_path)


def test_the_last_files_stay_open_until_the_object_goes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_MOST", 3)
    files = OpenFiles(store)
    for number in (0, 1, 2, 0, 3, 4, 3):
        assert files.read(f"{number}.tar", 8, 5) == bytes([number, number, 0, 1, 2])
        assert len(open_below(store.root)) <= 3
    assert open_below(store.root) == ["0.tar", "3.tar", "4.tar"]
    assert files.read("4.tar", 18, 100) == bytes([8, 9]), "the file ends there"
    del files
    assert open_below(store.root) == []


def test_what_is_missing_or_fails_is_opened_again(store: LocalStore) -> None:
    files = OpenFiles(store)
    with pytest.raises(FileNotFoundError):
        files.read("late.tar", 0, 1)
    (store.root / "late.tar").mkdir()  # opens, and cannot be read
    with pytest.raises(IsADirectoryError):
        files.read("late.tar", 0, 1)
    assert open_below(store.root) == []
    (store.root / "late.tar").rmdir()
    (store.root / "late.tar").write_bytes(b"there")
    assert files.read("late.tar", 0, 9) == b"there"
