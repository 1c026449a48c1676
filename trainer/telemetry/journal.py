"""A file of one JSON object a line that survives being cut off, and can be set back to an earlier step."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """Rows of a run, each with the step it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def set_back(self, step: int) -> None:
        """Open for writing. Rows of later steps are dropped: the run does not go on from them."""
        self.close()
        kept = [row for row in read_rows(self.path) if row["step"] <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._file = self.path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; a reader sees it at once."""
        assert self._file is not None
        self._file.write(json.dumps(row) + "\n")

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to a file that need not be open; when this returns, it is on the disk."""
        cut_off = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut_off + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """The end, unless `set_back` opens the file again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a journal; a line that a crash cut off is left out."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
