"""What a script writes, looked at before it works: it can be written, and it is not one of the script's inputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

VIDEOS = (".mp4", ".mkv", ".mov")
"""Containers that hold the H.264 which `trainer/evaluation/pictures.py` writes."""


def check_output_file(output: Path, suffixes: tuple[str, ...], inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse a file that cannot be written or that would replace an input.

    Args:
        output: what `--output` names; its folder may be missing. A regular file there may be replaced.
        suffixes: what the name may end in.
        inputs: option -> file or folder; None and addresses of stores are passed over.
    Raises:
        ValueError: naming the option and the remedy.
    """
    if output.suffix.lower() not in suffixes:
        raise ValueError(f"--output {output} must end in {' or '.join(suffixes)}")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output {output} is a {'folder' if output.is_dir() else 'device'}; name a file")
    _check_folder(output.parent, output)
    if output.exists():
        for option, place in _local(inputs):
            if any(_same(output, file) for file in _files(place)):
                raise ValueError(f"--output {output} is the same file as one of {option} {place}; name another output")


def check_output_folder(
    output: Path, inputs: Mapping[str, str | Path | None], *, option: str = "--output ", empty: bool = True
) -> None:
    """Refuse a folder that cannot be written or that is an input.

    Args:
        output: a folder that may be missing.
        inputs: option -> file or folder, as above.
        option: what messages call the output; it stands directly before the path.
        empty: refuse a folder that holds something.
    Raises:
        ValueError: naming the option and the remedy.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{option}{output} is a file; name a folder")
    _check_folder(output, output, option)
    for name, place in _local(inputs):
        if _same(output, place):
            raise ValueError(f"{option}{output} is the same folder as {name} {place}; name another output")
    if empty and output.exists() and any(output.iterdir()):
        raise ValueError(f"{option}{output} exists and is not empty; choose another, or remove it")


def _check_folder(folder: Path, output: Path, option: str = "--output ") -> None:
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise ValueError(f"{option}{output} cannot be written: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{option}{output} cannot be written: no files can be made in {above}")


def local_path(place: str | Path | None) -> Path | None:
    """The file or folder of this machine that a name means; None for nothing and for the address of a store.

    `file:///a`, `file:/a` and `file:a` are understood as FFmpeg understands them; `Path` has made one slash of three.
    """
    text = str(place or "")
    if text.startswith("file:"):
        text = re.sub(r"^/{2,}", "/", text.removeprefix("file:"))
    return Path(text) if text and "://" not in text and not re.match(r"[a-z0-9]+:/[^/]", text) else None


def _local(inputs: Mapping[str, str | Path | None]) -> Iterator[tuple[str, Path]]:
    for option, place in inputs.items():
        path = local_path(place)
        if path is not None and path.exists():
            yield option, path


def _files(place: Path) -> Iterator[Path]:
    """The file itself, or all files below a folder."""
    if not place.is_dir():
        yield place
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in names)


def _same(output: Path, other: Path) -> bool:
    """Whether both are one file or folder, also by a symbolic or hard link."""
    try:
        return os.path.samefile(output, other)
    except OSError:  # one of them is missing, or a link that leads nowhere
        return False
