"""A file with one JSON object a line, which survives a crash in a write and can be set back to an earlier step."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from data_pipeline.outside.redaction import redacted
from data_pipeline.store.files import atomic_file, flush


class Journal:
    """The rows that a run writes; each has the step that it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def set_back(self, step: int) -> None:
        """Open the file for writing, without the rows of later steps, because the run will make those steps again."""
        self.close()
        with atomic_file(self.path) as temporary, temporary.open("w") as kept:
            kept.writelines(json.dumps(row) + "\n" for row in read_rows(self.path) if row["step"] <= step)
        self._file = self.path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to the open file. A reader sees the row at once."""
        assert self._file is not None
        self._file.write(_line(row) + "\n")

    def keep(self) -> None:
        """Bring the rows to the disk, so that a power cut leaves them. Raises: OSError: the disk fails."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the file, open or not. When this method returns, the row is on the disk."""
        before = self.path.read_bytes() if self.path.is_file() else b""
        cut_off = bool(before) and not before.endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut_off + _line(row) + "\n")
        flush(self.path)

    def close(self) -> None:
        """Close the file; `set_back` may open it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(row: dict[str, Any]) -> str:
    """A row as JSON. Its texts, which may quote an error, hold no secrets."""
    return json.dumps({key: redacted(value) if isinstance(value, str) else value for key, value in row.items()})


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a journal, one after the other, without a line that a crash has cut off; none without a file."""
    if not path.is_file():
        return
    with path.open() as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError, RecursionError):
                yield json.loads(line)
