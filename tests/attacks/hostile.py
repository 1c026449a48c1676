"""Files that a stranger would make: pickles that run a command, tar headers and indexes that lie."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch


class Hostile:
    """Its pickle makes a file when it is loaded with code allowed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (f"touch '{self.mark}'",))


def plant(file: Path, mark: Path) -> None:
    """Add a hostile object to a good file of `torch.save`, in the place where nobody looks for it."""
    state = torch.load(file, weights_only=False, map_location="cpu")
    if isinstance(state, dict):
        state["zz"] = Hostile(mark)
    else:
        state = [state, Hostile(mark)]
    torch.save(state, file)


def sign(checkpoint: Path) -> None:
    """Write COMPLETE anew, so that it lists every file as it is now."""
    files = {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != "COMPLETE"
    }
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    (checkpoint / "COMPLETE").write_text(json.dumps(marker | {"files": files}))
