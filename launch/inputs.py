"""What a script reads, so that it does not write over it: files, and folders of which it reads some files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path

from data_pipeline.dataset.layout import is_dataset_key
from data_pipeline.source.names import CAPTION_TABLES, VIDEO_SUFFIXES
from model.config import CONFIG_FILE, WEIGHTS_FILE
from model.dit_config import DIT_CONFIG_FILE


@dataclass(frozen=True)
class InputFolder:
    """An input that may be a folder, with what the script reads of it. Other files below the folder are no inputs.

    Args:
        place: a folder, a single file, the address of a store, or None.
        reads: whether the script reads a file of this path, relative to the folder with `/` between its parts.
        closed: the folder is one thing, such as a dataset or a model; no folder of results lies in it or around it.
    """

    place: str | Path | None
    reads: Callable[[str], bool]
    closed: bool = False


Input = str | Path | InputFolder | None
"""An input of a script. All files below a folder that is no `InputFolder` are inputs."""


def videos(place: str | Path | None) -> InputFolder:
    """A folder of raw videos with their captions and manifests."""
    suffixes = {*VIDEO_SUFFIXES, ".txt"}
    return InputFolder(place, lambda name: Path(name).suffix.lower() in suffixes or name in CAPTION_TABLES)


def collection(place: str | Path | None) -> InputFolder:
    """A folder of a known collection: its videos, and official lists in text files. Its manifest is an output."""
    suffixes = {*VIDEO_SUFFIXES, ".txt"}
    return InputFolder(place, lambda name: Path(name).suffix.lower() in suffixes)


def shards(place: str | Path | None) -> InputFolder:
    """A dataset of shards."""
    return InputFolder(place, is_dataset_key, closed=True)


def model(place: str | Path | None) -> InputFolder:
    """A model directory."""
    return InputFolder(place, lambda name: name in (CONFIG_FILE, DIT_CONFIG_FILE, WEIGHTS_FILE), closed=True)


def is_dit(place: str | Path) -> bool:
    """Whether a model directory of this machine is one of a DiT."""
    folder = local_path(place)
    return folder is not None and (folder / DIT_CONFIG_FILE).is_file() and not (folder / CONFIG_FILE).exists()


def encoder(place: str | Path | None) -> InputFolder:
    """The directory of a text encoder and its tokenizer."""
    suffixes = (".json", ".safetensors", ".txt", ".model")
    return InputFolder(place, lambda name: "/" not in name and name.endswith(suffixes), closed=True)


def run(place: str | Path | None) -> InputFolder:
    """The output directory of a training, of which the checkpoints are read."""
    return InputFolder(place, lambda name: name.startswith(("checkpoints/", "step-")))


@contextmanager
def speaking_of(options: Mapping[str, str]) -> Iterator[None]:
    """Inside, refusals name a script's options where what it calls speaks of settings, which the script does not have.

    Args:
        options: beginning of a setting, such as `data.split=`, -> what stands in its place, such as `--split `.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        for setting, option in options.items():
            text = text.replace(setting, option)
        if text == str(error):
            raise
        raise ValueError(text) from error


def local_path(place: str | Path | None) -> Path | None:
    """The file or folder of this machine that a name means; None for nothing and for the address of a store.

    A text may begin with `~`, as that of a store may (`LocalStore`). A path is taken as it is.
    """
    if not place or "://" in str(place):
        return None
    return Path(expanduser(place)) if isinstance(place, str) else place


def local_inputs(inputs: Mapping[str, Input]) -> Iterator[tuple[str, Path, Callable[[str], bool]]]:
    """The inputs of this machine that exist, with what is read of each."""
    for option, given in inputs.items():
        folder = given if isinstance(given, InputFolder) else InputFolder(given, lambda name: True)
        path = local_path(folder.place)
        if path is not None and path.exists():
            yield option, path, folder.reads


def files_read(place: Path, reads: Callable[[str], bool]) -> Iterator[Path]:
    """The file itself, or the files below a folder that are read."""
    if not place.is_dir():
        yield place
    for folder, _, names in os.walk(place):
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if reads(path.relative_to(place).as_posix()))


def is_read_below(output: Path, place: Path, reads: Callable[[str], bool]) -> bool:
    """Whether the output, which may be missing, has a name that the script reads below an input folder."""
    inside, folder = output.resolve(), place.resolve()
    return inside.is_relative_to(folder) and inside != folder and reads(inside.relative_to(folder).as_posix())
