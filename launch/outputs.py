"""What a script writes, looked at before it works: it can be written, and it is not one of the script's inputs."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.dataset.layout import is_dataset_key
from data_pipeline.source.names import MANIFEST_SUFFIXES, MEASURED_SUFFIXES
from model.config import CONFIG_FILE, WEIGHTS_FILE

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
"""Errors of a disk that the same command may not meet again, so a script ends with status 1 and not 2."""
VIDEOS = (".mp4", ".mkv", ".mov")
"""Containers that hold the H.264 which `trainer/evaluation/pictures.py` writes."""


@dataclass(frozen=True)
class InputFolder:
    """An input that may be a folder, with what the script reads of it. Other files below the folder are no inputs.

    Args:
        place: a folder, a single file, the address of a store, or None.
        reads: whether the script reads a file of this path, relative to the folder with `/` between its parts.
    """

    place: str | Path | None
    reads: Callable[[str], bool]


Input = str | Path | InputFolder | None
"""An input of a script. All files below a folder that is no `InputFolder` are inputs."""


def videos(place: str | Path | None) -> InputFolder:
    """A folder of raw videos with their captions and manifests."""
    suffixes = {*MEASURED_SUFFIXES, ".txt"}
    tables = {f"captions{suffix}" for suffix in MANIFEST_SUFFIXES}
    return InputFolder(place, lambda name: Path(name).suffix.lower() in suffixes or name in tables)


def collection(place: str | Path | None) -> InputFolder:
    """A folder of a known collection: its videos, and official lists in text files. Its manifest is an output."""
    suffixes = {*MEASURED_SUFFIXES, ".txt"}
    return InputFolder(place, lambda name: Path(name).suffix.lower() in suffixes)


def shards(place: str | Path | None) -> InputFolder:
    """A dataset of shards."""
    return InputFolder(place, is_dataset_key)


def model(place: str | Path | None) -> InputFolder:
    """A model directory."""
    return InputFolder(place, lambda name: name in (CONFIG_FILE, WEIGHTS_FILE))


def check_output_file(output: Path, suffixes: tuple[str, ...], inputs: Mapping[str, Input]) -> None:
    """Refuse a file that cannot be written or that would replace an input.

    Args:
        output: what `--output` names; its folder may be missing. A regular file there may be replaced.
        suffixes: what the name may end in.
        inputs: option -> input; None and addresses of stores are passed over.
    Raises:
        ValueError: naming the option and the remedy.
        OSError: the disk is full or fails.
    """
    if output.suffix.lower() not in suffixes:
        raise ValueError(f"--output {output} must end in {' or '.join(suffixes)}")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output {output} is a {'folder' if output.is_dir() else 'device'}; name a file")
    _check_folder(output.parent, output)
    for option, place, reads in _local(inputs):
        if output.exists() and any(_same(output, file) for file in _files(place, reads)):
            raise ValueError(f"--output {output} is the same file as one of {option} {place}; name another output")
        if _is_read_below(output, place, reads):
            raise ValueError(f"--output {output} lies among the files of {option} {place}; name a file outside of them")


def check_output_folder(
    output: Path, inputs: Mapping[str, Input], *, option: str = "--output ", empty: bool = True
) -> None:
    """Refuse a folder that cannot be written or that is an input.

    Args:
        output: a folder that may be missing.
        inputs: option -> input, as above.
        option: what messages call the output; it stands directly before the path.
        empty: refuse a folder that holds something.
    Raises:
        ValueError: naming the option and the remedy.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{option}{output} is a file; name a folder")
    _check_folder(output, output, option)
    for name, place, _ in _local(inputs):
        if _same(output, place):
            raise ValueError(f"{option}{output} is the same folder as {name} {place}; name another output")
    if empty and output.exists() and any(output.iterdir()):
        raise ValueError(f"{option}{output} exists and is not empty; choose another, or remove it")


def _check_folder(folder: Path, output: Path, option: str = "--output ") -> None:
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise ValueError(f"{option}{output} cannot be written: {above} is not a folder")
    try:
        tempfile.TemporaryFile(dir=above).close()  # access(2) says of root that it may write everywhere
    except OSError as error:
        if error.errno in _MAY_PASS:
            raise
        raise ValueError(f"{option}{output} cannot be written: no files can be made in {above}") from error


def local_path(place: str | Path | None) -> Path | None:
    """The file or folder of this machine that a name means; None for nothing and for the address of a store."""
    return Path(place) if place and "://" not in str(place) else None


def _local(inputs: Mapping[str, Input]) -> Iterator[tuple[str, Path, Callable[[str], bool]]]:
    """The inputs of this machine that exist, with what is read of each."""
    for option, given in inputs.items():
        folder = given if isinstance(given, InputFolder) else InputFolder(given, lambda name: True)
        path = local_path(folder.place)
        if path is not None and path.exists():
            yield option, path, folder.reads


def _is_read_below(output: Path, place: Path, reads: Callable[[str], bool]) -> bool:
    """Whether the output, which may be missing, has a name that the script reads below an input folder."""
    inside, folder = output.resolve(), place.resolve()
    return inside.is_relative_to(folder) and inside != folder and reads(inside.relative_to(folder).as_posix())


def _files(place: Path, reads: Callable[[str], bool]) -> Iterator[Path]:
    """The file itself, or the files below a folder that are read."""
    if not place.is_dir():
        yield place
    for folder, _, names in os.walk(place):
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if reads(path.relative_to(place).as_posix()))


def _same(output: Path, other: Path) -> bool:
    """Whether both are one file or folder, also by a symbolic or hard link."""
    try:
        return os.path.samefile(output, other)
    except OSError:  # one of them is missing, or a link that leads nowhere
        return False
