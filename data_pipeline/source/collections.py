"""Makes manifests for `launch/build_shards.py` from the folders and official lists of known video collections.

UCF-101: Soomro, Zamir, Shah, "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", CRCV-TR-12-01:
`<Class>/v_<Class>_g<group>_c<clip>.avi`, with `classInd.txt` and `trainlist0N.txt`, `testlist0N.txt` for N = 1, 2, 3.
MCL-JCV: Wang et al., "MCL-JCV: A JND-based H.264/AVC video quality assessment dataset", ICIP 2016: thirty sequences
`videoSRC<number>_<width>x<height>_<fps>`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.raw_video import is_raw, raw_geometry
from data_pipeline.source.config import UCF101_SPLITS
from data_pipeline.source.names import VIDEO_SUFFIXES
from data_pipeline.store.files import atomic_file
from data_pipeline.store.text import read_lines

MCL_JCV_SEQUENCES = 30
_NAMED = 20  # files that an error lists
_SEQUENCE = re.compile(r"videoSRC(\d{2,})(?:_(\d+)x(\d+)_(\d+(?:\.\d+)?))?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One row; the field names are the manifest's columns."""

    id: str  # path below the collection's folder; it does not depend on where the folder lies
    video: str  # path relative to the manifest's folder, or an absolute path
    caption: str  # "" where the collection has no captions
    label: str
    split: str  # train or test
    caption_from: str  # origin of the caption, such as "class name": nobody described this video itself


def ucf101(videos: Path, lists: Path, split: int, manifest: Path) -> list[ManifestRow]:
    """Rows of UCF-101 in the order of the file names. The label is the class; the caption is the class in words.

    Args:
        videos: folder of the class folders.
        lists: folder of the official lists.
        split: number of one of the three official train and test splits.
        manifest: file that the rows will be written to; `video` is relative to its folder.
    Raises:
        ValueError: a list is missing or malformed, or folder and lists do not name the same videos.
    """
    if split not in UCF101_SPLITS:
        raise ValueError(f"split {split} is none of UCF-101's official splits {', '.join(map(str, UCF101_SPLITS))}")
    classes = _classes(lists / "classInd.txt")
    names = {"train": lists / f"trainlist{split:02d}.txt", "test": lists / f"testlist{split:02d}.txt"}
    listed = {part: _listed(path, classes) for part, path in names.items()}
    files = {path.relative_to(videos).as_posix() for path in _folder(videos).glob("*/*.avi")}
    train, test = listed["train"], listed["test"]
    both_lists = f"{names['train'].name} and {names['test'].name}"
    _refuse(train & test, f"in both {both_lists}", "take the official lists, which have no common video")
    _refuse((train | test) - files, f"in {both_lists}, but not in {videos}", "complete the folder")
    _refuse(
        files - train - test,
        f"in {videos}, but neither in {both_lists}",
        "remove them, or take the lists that name them",
    )
    rows = []
    for name in sorted(files):
        label = name.partition("/")[0]
        rows.append(
            ManifestRow(
                id=name,
                video=_video(videos / name, manifest),
                caption=class_in_words(label),
                label=label,
                split="train" if name in train else "test",
                caption_from="class name",
            )
        )
    return rows


def mcl_jcv(videos: Path, manifest: Path, *, partial: bool = False) -> list[ManifestRow]:
    """Rows of the MCL-JCV sequences in a folder, at any depth, in the order of their numbers: all test, no captions.

    Args:
        manifest: file that the rows will be written to; `video` is relative to its folder.
        partial: allow a folder with fewer than the thirty sequences.
    Raises:
        ValueError: the folder has raw pictures whose name lacks size or rate, other videos, a number twice, or too few
            numbers.
    """
    below = sorted(path for path in _folder(videos).rglob("*") if path.is_file())
    for path in below:
        if is_raw(path.name):
            raw_geometry(path.name)
    files = [path for path in below if path.suffix.lower() in VIDEO_SUFFIXES]
    names = {path: path.relative_to(videos).as_posix() for path in files}
    matches = {path: _SEQUENCE.match(path.name) for path in files}
    strange = {names[path] for path, match in matches.items() if match is None}
    _refuse(strange, f"in {videos}, but not named videoSRC<number>_...", "move them away")
    numbers: dict[int, list[Path]] = {}
    for path, match in matches.items():
        assert match is not None
        numbers.setdefault(int(match[1]), []).append(path)
    double = {names[path] for paths in numbers.values() if len(paths) > 1 for path in paths}
    _refuse(double, "versions of the same sequence", "keep only the source of each")
    missing = set(range(1, MCL_JCV_SEQUENCES + 1)) - numbers.keys()
    if not numbers or (missing and not partial):
        listed = ", ".join(f"{number:02d}" for number in sorted(missing))
        raise ValueError(f"{videos} lacks sequences {listed} of MCL-JCV; complete it, or pass --partial for a part")
    return [
        ManifestRow(
            id=names[path],
            video=_video(path, manifest),
            caption="",
            label="",
            split="test",
            caption_from="",
        )
        for _, (path,) in sorted(numbers.items())
    ]


def write_manifest(rows: Sequence[ManifestRow], path: Path) -> None:
    """Write rows as CSV or Parquet, as the file's suffix says. The same rows give the same bytes.

    Raises: ValueError for another suffix.
    """
    columns = [item.name for item in fields(ManifestRow)]
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ValueError(f"manifest {path.name!r} must end in .csv or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        if suffix == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([columns, *map(astuple, rows)])
        else:
            schema = pa.schema([(name, pa.string()) for name in columns])
            pq.write_table(pa.Table.from_pylist([vars(row) for row in rows], schema=schema), temporary)


def class_in_words(name: str) -> str:
    """A class name as separate words in lower case: `ApplyEyeMakeup` -> `apply eye makeup`."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+", name)).lower()


def _classes(path: Path) -> dict[str, int]:
    """Class name -> number, from a list with lines such as `1 ApplyEyeMakeup`."""
    classes: dict[str, int] = {}
    for number, line in _lines(path):
        words = line.split()
        if len(words) != 2 or not words[0].isdecimal():
            raise ValueError(f"{path.name} line {number}: expected `<number> <Class>`, got {line!r}")
        if words[1] in classes or int(words[0]) in classes.values():
            raise ValueError(f"{path.name} line {number}: {line!r} names a class or a number a second time")
        classes[words[1]] = int(words[0])
    return classes


def _listed(path: Path, classes: dict[str, int]) -> set[str]:
    """The videos of a list. Its lines are `Class/file.avi`, followed in the train lists by the number of the class."""
    videos: set[str] = set()
    for number, line in _lines(path):
        match = re.fullmatch(r"([^/\s]+)/([^/\s]+\.avi)(?:\s+(\d+))?", line)
        if match is None:
            raise ValueError(f"{path.name} line {number}: expected `<Class>/<file>.avi`, got {line!r}")
        if match[1] not in classes:
            raise ValueError(f"{path.name} line {number}: class {match[1]!r} is not in classInd.txt")
        if match[3] is not None and int(match[3]) != classes[match[1]]:
            raise ValueError(
                f"{path.name} line {number}: class {match[1]!r} has number {match[3]}, in classInd.txt "
                f"{classes[match[1]]}; take both files from one release"
            )
        video = f"{match[1]}/{match[2]}"
        if video in videos:
            raise ValueError(f"{path.name} line {number}: {video!r} is listed a second time; remove the line")
        videos.add(video)
    return videos


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Some releases of the lists end their lines with CR LF."""
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; --lists must be the folder of the official lists") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the one that holds the videos")
    return path


def _refuse(names: set[str], what: str, remedy: str) -> None:
    if names:
        shown = ", ".join(map(repr, sorted(names)[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        count = "1 video is" if len(names) == 1 else f"{len(names)} videos are"
        raise ValueError(f"{count} {what}: {shown}; {remedy}")


def _video(path: Path, manifest: Path) -> str:
    """Path of a video, relative to the manifest's folder when the video lies below that folder, else absolute."""
    video, folder = path.absolute(), manifest.absolute().parent
    return (video.relative_to(folder) if video.is_relative_to(folder) else video).as_posix()
