"""A checkpoint as files: its name, its marker, its faults, and when it may be removed. No ranks and no network."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.store.files import atomic_file, file_sha256, flush

MARKER = "COMPLETE"
FORMAT = 1
PIECE = 2**22
"""Bytes of a file that are copied at once."""

Files = dict[str, dict[str, Any]]
"""Relative name of a file -> its size as "bytes" and its digest as "sha256"."""


def step_name(step: int) -> str:
    """The name of a step's checkpoint directory. The names sort by step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint directory's name; None for any other name."""
    match = re.fullmatch(r"step-(\d{8,})", name)
    return int(match[1]) if match else None


def is_complete(directory: Path) -> bool:
    """Whether the checkpoint has its marker."""
    return (directory / MARKER).is_file()


def steps_in(folder: Path, complete: bool) -> list[int]:
    """Steps of the checkpoints in `folder` that have the marker, or of those that lack it; ascending."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = (step for name in names if (step := step_of(name)) is not None)
    return sorted(step for step in steps if is_complete(folder / step_name(step)) is complete)


def superseded(steps: Iterable[int], keep: int, keep_every: int) -> list[int]:
    """The steps whose checkpoints may be removed: all but the newest `keep` and the multiples of `keep_every`.

    `keep_every=0` keeps no multiples.
    """
    older = sorted(steps)[:-keep]
    return [step for step in older if not keep_every or step % keep_every]


def marker_text(step: int, files: Files) -> str:
    """The text of a checkpoint's marker."""
    return json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1)


def read_marker(text: str) -> Files:
    """The files that a marker lists.

    Raises:
        ValueError: the text is not a marker of this format.
    """
    try:
        files = json.loads(text)["files"]
        return {str(name): {"bytes": int(entry["bytes"]), "sha256": entry["sha256"]} for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MARKER} cannot be understood ({error})") from error


def names_in(directory: Path) -> set[str]:
    """Relative names of the files in a checkpoint that is being written."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def flush_and_digest(path: Path) -> dict[str, Any]:
    """Flush a file to the disk. Returns its size as "bytes" and its digest as "sha256"."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def copy_and_digest(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, its mode included, and flush the copy. Returns what `flush_and_digest` says of it."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as original, target.open("wb") as copy:
        while piece := original.read(PIECE):
            digest.update(piece)
            copy.write(piece)
            size += len(piece)
    shutil.copymode(source, target)
    flush(target)
    return {"bytes": size, "sha256": digest.hexdigest()}


def fault(path: Path, entry: dict[str, Any]) -> str:
    """How a file of a checkpoint differs from its entry in the marker, with its name; empty if it does not differ."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path} has {size} bytes, but {entry['bytes']} were written"
        if file_sha256(path) != entry["sha256"]:
            return f"{path} has another content than was written (sha256)"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return ""


def write_marker(directory: Path, text: str) -> None:
    """Complete a checkpoint whose files are flushed: flush its folders, then write the marker whole or not at all."""
    for folder in {item.parent for item in directory.rglob("*")} | {directory, directory.parent}:
        flush(folder)
    with atomic_file(directory / MARKER) as temporary:
        temporary.write_text(text)


def remove(directory: Path) -> None:
    """Delete a checkpoint, the marker first, so that a removal that is cut short leaves no complete-looking rest."""
    (directory / MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory)


def set_aside(directory: Path, why: str) -> Path:
    """Rename a checkpoint so that nothing uses or deletes it.

    Args:
        why: the new name begins with this word: `damaged`, `incomplete` or `abandoned`.
    Returns:
        Its new path.
    """
    return directory.rename(unused_name(directory.with_name(f"{why}-{directory.name}")))


def unused_name(path: Path) -> Path:
    """The path itself where nothing has it, else the path with the lowest number from 2 on behind it."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
