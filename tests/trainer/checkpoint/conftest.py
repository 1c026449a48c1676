"""Checkpoints of a run on a named node, which are uploaded to a folder, and the lines they print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer import numbers
from tests.trainer.checkpoint.uploads import Open
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.distributed import Ranks


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def remote(tmp_path: Path) -> str:
    return str(tmp_path / "remote")


@pytest.fixture
def remote_folder(remote: str) -> Path:
    """The same, where a test looks at its files."""
    return Path(remote)


@pytest.fixture
def opened(alone: Ranks, tmp_path: Path, remote: str, messages: list[str]) -> Open:
    """The checkpoints of a run on the node `run`, or on one of another name, as a new process sees them."""

    def open_it(*settings: str, node: str = "run", upload: str = remote) -> Checkpoints:
        upload_settings = (f"checkpoint.upload={upload}", "checkpoint.keep=2")
        return numbers.opened(alone, tmp_path / node, (*upload_settings, *settings), messages.append)

    return open_it
