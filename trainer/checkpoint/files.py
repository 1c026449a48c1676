"""A checkpoint as files: its name, its marker, what is wrong with it, which ones may go. No ranks and no network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.store.files import flush

MARKER = "COMPLETE"
FORMAT = 1

Files = dict[str, dict[str, Any]]
"""Relative name of a file -> its "bytes" and "sha256"."""


def step_name(step: int) -> str:
    """Name of the checkpoint directory of a step; sorts by step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's directory name, None for any other name."""
    match = re.fullmatch(r"step-(\d{8,})", name)
    return int(match[1]) if match else None


def is_complete(directory: Path) -> bool:
    """Whether the marker is there."""
    return (directory / MARKER).is_file()


def steps_in(folder: Path, complete: bool) -> list[int]:
    """Steps of the checkpoints in `folder` with, or of those without, the marker; ascending."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = (step for name in names if (step := step_of(name)) is not None)
    return sorted(step for step in steps if is_complete(folder / step_name(step)) is complete)


def superseded(steps: Iterable[int], keep: int, keep_every: int) -> list[int]:
    """Which checkpoints may go: all but the newest `keep` and, unless `keep_every` is 0, its multiples."""
    older = sorted(steps)[:-keep]
    return [step for step in older if not keep_every or step % keep_every]


def marker_text(step: int, files: Files) -> str:
    """What the marker of a checkpoint says."""
    return json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1)


def read_marker(text: str) -> Files:
    """The files a marker promises.

    Raises:
        ValueError: it is not a marker of this format.
    """
    try:
        files = json.loads(text)["files"]
        return {str(name): {"bytes": int(entry["bytes"]), "sha256": entry["sha256"]} for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MARKER} cannot be understood ({error})") from error


def names_in(directory: Path) -> set[str]:
    """Relative names of the files of a checkpoint that is being written."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def flush_and_digest(path: Path) -> dict[str, Any]:
    """Bring a file to the disk; its size and sha256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _digest(path)


def fault(path: Path, entry: dict[str, Any]) -> str:
    """What is wrong with a file of a checkpoint, in words that name it; empty if it is as it was written."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path} has {size} bytes, but {entry['bytes']} were written"
        if _digest(path)["sha256"] != entry["sha256"]:
            return f"{path} has another content than was written (sha256)"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return ""


def write_marker(directory: Path, text: str) -> None:
    """Complete a checkpoint: the marker appears whole or not at all, after everything else has reached the disk."""
    for folder in {item.parent for item in directory.rglob("*")} | {directory, directory.parent}:
        flush(folder)
    partial = directory / f".{MARKER}.partial"
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / MARKER)
    flush(directory)


def remove(directory: Path) -> None:
    """Delete a checkpoint, the marker first: a removal that is cut short must not leave what looks complete."""
    (directory / MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory)


def set_aside(directory: Path) -> Path:
    """Rename a damaged checkpoint so that nothing uses or deletes it; its new place."""
    number, target = 1, directory.with_name(f"damaged-{directory.name}")
    while target.exists():
        number += 1
        target = directory.with_name(f"damaged-{directory.name}-{number}")
    return directory.rename(target)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
