"""Nodes where the ranks cannot make files; test_resume_from_store.py has ranks with disks of their own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.store.base import StoreError
from trainer.checkpoint.shared_disks import find_shared_disks
from trainer.distributed import Ranks


class Two(Ranks):
    """Rank 0 of two; `control` holds what rank 1 answers, one after the other."""

    def gather(self, value: Any) -> list[Any]:
        return [value, self.control.pop(0)]

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        """Rank 1 is always there."""


def find(directory: Path, *answers: Any) -> None:
    find_shared_disks(Two(0, 2, 0, torch.device("cpu"), list(answers)), directory)


def test_a_node_without_the_folder_is_named_on_every_rank(tmp_path: Path) -> None:
    """Nothing can be made in /proc, not even by root, as in the root of a node's disk that lacks the shared mount."""
    with pytest.raises(
        ValueError, match=r"^/proc/run/checkpoints: no file can be made in /proc, the nearest .* mount it, or"
    ):
        find(Path("/proc/run/checkpoints"), None)
    with pytest.raises(ValueError, match=r"^rank 1: no file can be made"):
        find(tmp_path / "run" / "checkpoints", (False, "no file can be made"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_on_every_rank_and_no_missing_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command fails then, and does not count as wrong: it can be given again."""
    with pytest.raises(StoreError, match=r"^rank 1: no space left"):
        find(tmp_path, (True, "no space left"))
    assert list(tmp_path.iterdir()) == []

    def full(path: Path) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StoreError, match="no space left"):
        find(tmp_path, None)
