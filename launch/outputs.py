"""What a script writes, looked at before it works: it can be written, and it is not one of the script's inputs."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launch.inputs import Input, InputFolder, files_read, is_read_below, local_inputs, local_path

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
"""Errors of a disk that the same command may not meet again, so a script ends with status 1 and not 2."""
VIDEOS = (".mp4", ".mkv", ".mov")
"""Containers that hold the H.264 which `trainer/evaluation/pictures.py` writes."""


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
    for option, place, reads in local_inputs(inputs):
        if output.exists() and any(_same(output, file) for file in files_read(place, reads)):
            raise ValueError(f"--output {output} is the same file as one of {option} {place}; name another output")
        if is_read_below(output, place, reads):
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
    for name, place, _ in local_inputs(inputs):
        if _same(output, place):
            raise ValueError(f"{option}{output} is the same folder as {name} {place}; name another output")
    for name, place, reads in local_inputs(
        {key: value for key, value in inputs.items() if isinstance(value, InputFolder)}
    ):
        if is_read_below(output, place, reads):
            raise ValueError(f"{option}{output} lies among the files of {name} {place}; name a folder outside of them")
    check_apart(output, inputs, option)
    if empty and output.exists() and any(output.iterdir()):
        raise ValueError(f"{option}{output} exists and is not empty; choose another, or remove it")


def check_kinds_below(output: Path, files: tuple[str, ...], folders: Mapping[str, str]) -> None:
    """Refuse a place below an output folder that is a folder where a file will be written, or the other way round.

    Args:
        output: what `--output` names; it may be missing.
        files: names of the files that will be written.
        folders: name of a folder that will be written -> the ending of the files in it.
    Raises:
        ValueError: naming the place and the remedy.
    """
    wrong = [output / name for name in files if (output / name).is_dir()]
    for name, ending in folders.items():
        folder = output / name
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output {output}: {folder} must be a folder, and is a file; remove it")
        wrong += sorted(place for place in folder.glob(f"*{ending}") if place.is_dir())
    if wrong:
        raise ValueError(f"--output {output}: {wrong[0]} must be a file, and is a folder; remove it")


def check_output_dataset(output: str, inputs: Mapping[str, Input]) -> None:
    """Refuse what `output=` names, a folder or the address of one on a store, as a place for a dataset.

    Args:
        inputs: setting -> input, as above.
    Raises:
        ValueError: naming the setting and the remedy.
    """
    folder = local_path(output)
    if folder is not None:
        check_output_folder(folder, inputs, option="output=", empty=False)
    check_apart(output, inputs, "output=")


def check_apart(output: str | Path, inputs: Mapping[str, Input], option: str = "--output ") -> None:
    """Refuse a folder, or the address of one on a store, that lies in a dataset, model or encoder or contains one.

    Args:
        inputs: option -> input, as above; those that are not closed are passed over.
        option: as above.
    Raises:
        ValueError: naming the option and the remedy.
    """
    for name, given in inputs.items():
        if isinstance(given, InputFolder) and given.closed and given.place:
            if lies_in(output, given.place):
                raise ValueError(f"{option}{output} lies in {name} {given.place}; name a folder outside of it")
            if lies_in(given.place, output):
                raise ValueError(f"{option}{output} contains {name} {given.place}; name a folder of its own")


def lies_in(place: str | Path, other: str | Path) -> bool:
    """Whether a place of this machine or of a store is the other one or lies below it."""
    return Path(*_parts(place)).is_relative_to(Path(*_parts(other)))


def _parts(place: str | Path) -> tuple[str, ...]:
    """The folders on the way to a place, from the root of this machine's disks or from a store."""
    local = local_path(place)
    return local.resolve().parts if local is not None else tuple(str(place).split("/"))


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


def _same(output: Path, other: Path) -> bool:
    """Whether both are one file or folder, also by a symbolic or hard link."""
    try:
        return os.path.samefile(output, other)
    except OSError:  # one of them is missing, or a link that leads nowhere
        return False
