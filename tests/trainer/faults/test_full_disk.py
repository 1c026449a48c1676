"""Which errors are those of a full disk, and the line that a user reads."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trainer.faults.full_disk import forget, of_a_full_disk, said_of_disk, tell, was_told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_the_cause_of_an_error_counts(number: int) -> None:
    disk = OSError(number, os.strerror(number), "/run/metrics.jsonl")
    assert of_a_full_disk(disk)
    later = RuntimeError("a logger failed")
    later.__cause__ = disk
    assert of_a_full_disk(later)
    closing = ValueError("closed")
    closing.__context__ = later
    assert of_a_full_disk(closing)
    assert not of_a_full_disk(OSError(errno.EIO, "Input/output error"))


def test_the_line_names_the_file_and_the_remedy() -> None:
    line = said_of_disk(OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl"), "/run")
    assert line.startswith("/run/metrics.jsonl: No space left on device; make room")
    assert "the same command goes on" in line
    assert "\n" not in said_of_disk(OSError(errno.ENOSPC, "x"), "/run")
    assert "a file in /run: " in said_of_disk(OSError(errno.ENOSPC, "x"), "/run")


def test_one_rank_of_a_node_tells_and_the_others_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one launcher and one output."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert not was_told("/run")
    assert [tell("/run"), tell("/run"), tell("/other")] == [True, False, True]
    assert was_told("/run")
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert not was_told("/run"), "another launch"
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    forget("/run")
    assert not was_told("/run")
