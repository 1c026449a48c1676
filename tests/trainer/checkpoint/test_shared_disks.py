"""A node where the ranks cannot make files; test_resume_from_store.py has ranks with disks of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_a_node_without_the_folder_is_named_on_every_rank(tmp_path: Path) -> None:
    """Nothing can be made in /proc, not even by root, as in the root of a node's disk that lacks the shared mount."""
    with pytest.raises(
        ValueError, match=r"^/proc/run/checkpoints: rank 0 cannot make files in /proc, the nearest .*\("
    ):
        find_shared_disks(Two(0, 2, 0, torch.device("cpu"), [""]), Path("/proc/run/checkpoints"))
    other = "in /, the nearest folder that exists there (Permission denied)"
    with pytest.raises(
        ValueError, match=r"checkpoints: rank 1 cannot make files in /, .* mount it, or make it writable"
    ):
        find_shared_disks(Two(0, 2, 0, torch.device("cpu"), [other]), tmp_path / "run" / "checkpoints")
    assert list(tmp_path.iterdir()) == []
