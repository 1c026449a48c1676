"""A checkpoint as files: its name, its marker, its faults, and when it may be removed. No ranks and no network."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import MOST_JSON, parse_json, read_json_object
from data_pipeline.outside.regular import open_regular, read_regular
from data_pipeline.store.base import checked_key
from data_pipeline.store.files import TEMPORARY, atomic_file, file_sha256, flush, lock_file
from trainer.engine.saved_files import load_saved

MARKER = "COMPLETE"
STATE = "state.json"
TENSORS = ".pt"
"""How the names of files of `torch.save` end."""
FORMAT = 1
MOST_BYTES = 2**63
"""No file system holds a file of so many bytes."""
PIECE = 2**22
"""Bytes of a file that are copied at once."""

_BEST = [{"step": int, "term": str, "value": number} for number in (float, int)]
"""Types of what state.json says of the best checkpoint."""

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


def marker_of(directory: Path) -> str:
    """The text of the marker of a checkpoint on the disk.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is too long, or not UTF-8.
        OSError: it cannot be read.
    """
    return read_regular(directory / MARKER, MOST_JSON).decode()


def read_state(directory: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint: `step`, `epoch` and `consumed` are whole numbers, `order` names the data.

    Raises:
        ValueError: it is damaged; the message names the file and the entry.
        OSError: it cannot be read.
    """
    file = directory / STATE
    state = read_json_object(file)
    for name in ("step", "epoch", "consumed"):
        if type(state.get(name)) is not int or not 0 <= state[name] < MOST_BYTES:
            raise ValueError(f"{file}: {name} must be a whole number; the file is damaged: use another checkpoint")
    origin = state.get("forked_from")
    if origin is not None and not (isinstance(origin, dict) and {"checkpoint", "step"} <= origin.keys()):
        raise ValueError(f"{file}: forked_from must say `checkpoint` and `step`; use another checkpoint")
    best = state.get("best", {"step": 0, "term": "", "value": 0})
    if not isinstance(best, dict) or {key: type(entry) for key, entry in best.items()} not in _BEST:
        raise ValueError(f"{file}: best must say `step`, `term` and `value` and no more; use another checkpoint")
    if not isinstance(state.get("order"), dict):
        raise ValueError(f"{file}: order must be an object; the file is damaged: use another checkpoint")
    return state


def read_marker(text: str) -> Files:
    """The files that a marker lists: at least one, each inside the checkpoint.

    Raises:
        ValueError: the text is not a marker of this format.
    """
    try:
        document = parse_json(text)
        if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
            raise ValueError("it has no list of files")
        if document.get("format", FORMAT) != FORMAT:
            raise ValueError(f"its format is {str(document['format'])[:40]!r}, and this program reads {FORMAT}")
        if not document["files"]:
            raise ValueError("it lists no file")
        return {name: _entry(name, entry) for name, entry in document["files"].items()}
    except ValueError as error:
        raise ValueError(f"{MARKER} cannot be understood ({error}); use another checkpoint") from error


def _entry(name: str, entry: object) -> dict[str, Any]:
    """What a marker says of a file, of which nothing is believed before it is checked."""
    checked_key(name)
    if name == MARKER:
        raise ValueError(f"it lists {MARKER} itself")
    size, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if type(size) is not int or not 0 <= size < MOST_BYTES:
        raise ValueError(f"{name!r} has no size in bytes")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{name!r} has no sha256")
    return {"bytes": size, "sha256": sha256}


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
    """What is wrong with a file of a checkpoint, with its name; empty where nothing is.

    It differs from its entry in the marker, it is a link or no regular file, or its values are more than tensors and
    what DeepSpeed writes, so that code would run if it were loaded in the usual way.
    """
    try:
        with open_regular(path, follow=False) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                return f"{path} has {size} bytes, but {entry['bytes']} were written"
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{path} has another content than was written (sha256)"
        if path.suffix == TENSORS:
            load_saved(path)
        if path.name == STATE:
            read_state(path.parent)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return ""


def unlisted(directory: Path, files: Files) -> list[str]:
    """What lies in a checkpoint and is not in its marker, in words: DeepSpeed reads files by patterns of their names.

    Folders that hold nothing do no harm. What NFS keeps of a file that was deleted while it was open is no file of the
    checkpoint.
    """
    found = []
    for folder, folders, names in os.walk(directory):
        names += [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in names:
            path = Path(folder) / name
            key = path.relative_to(directory).as_posix()
            if key != MARKER and key not in files and not name.startswith(".nfs"):
                found.append(f"{path} is not listed in {MARKER}; move it away")
    return sorted(found)


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files that a fetch has left in a checkpoint when its process was killed."""
    for path in directory.rglob(f"{TEMPORARY}*") if directory.is_dir() else ():
        with suppress(OSError), open_regular(path, follow=False) as file:
            if lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink()


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
