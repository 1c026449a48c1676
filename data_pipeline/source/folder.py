"""Finds the videos of a local folder with their captions, and counts what it leaves out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pyarrow as pa

from data_pipeline.outside.regular import NotRegular, check_regular, leaves
from data_pipeline.source.left_out import LeftOut
from data_pipeline.source.names import CAPTION_TABLES, VIDEO_SUFFIXES
from data_pipeline.source.raw_rows import Column, MappedRows
from data_pipeline.source.tables import BATCH_ROWS, numbers
from data_pipeline.source.twins import same_name
from data_pipeline.store.text import read_text

CAPTION_BYTES = 1 << 20
"""A longer file is no caption."""
Found = tuple[str, str | None, str]
"""A video relative to the folder, its caption, and why the row is of no use ("" : it is usable)."""


class FileNames:
    """Gives every file of a folder one name, whatever links and `..` its path goes through.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = os.path.realpath(root)
        self._real_folder = lru_cache(maxsize=65_536)(os.path.realpath)

    def name(self, path: str) -> str:
        """The path relative to the folder, or absolute where it lies elsewhere. A file that is a link stays itself."""
        folder, file = os.path.split(path)
        if "://" in path or "\0" in path or not file or file == "..":
            return path
        real = self._real_folder(os.path.join(self.root, folder))
        if real == self._real_root:
            return file
        inside = real.startswith(f"{self._real_root}/")
        return f"{real.removeprefix(f'{self._real_root}/') if inside else real}/{file}"


def folder_rows(
    root: Path, named: Collection[str], left_out: LeftOut, *, untrusted: bool, record: bool
) -> Iterator[MappedRows]:
    """The videos of a folder at any depth, in order of the names, but those that are named already.

    Args:
        root: the folder.
        named: videos to leave out, as `FileNames` names them.
        left_out: counts what is not taken.
        untrusted: do not follow links to folders, nor those of captions out of the folder.
        record: count a folder that cannot be read; False refuses it.
    Raises:
        ValueError: a folder cannot be read.
    """
    twins = {same_name(name): name for name in named if not name.isascii()}
    files = FileNames(root)
    walked = _walk(root, left_out, untrusted, record)
    rows = (found for found in walked if not named or not _is_named(files.name(found[0]), root, named, twins))
    first = 1
    while chunk := list(islice(rows, BATCH_ROWS)):
        left_out.videos += len(chunk)
        names, captions, problems = zip(*chunk, strict=True)
        yield MappedRows(
            {
                "video": Column(pa.array(names, pa.string())),
                "caption": Column(pa.array(captions, pa.string())),
            },
            {},
            numbers(first, len(chunk)),
            {position: problem for position, problem in enumerate(problems) if problem},
        )
        first += len(chunk)


def _is_named(video: str, root: Path, named: Collection[str], twins: dict[str, str]) -> bool:
    """Whether a table names the video, or a twin of its name that is no file of its own."""
    if video in named:
        return True
    twin = None if video.isascii() else twins.get(same_name(video))
    return twin is not None and not (root / twin).exists()


def _walk(
    root: Path, left_out: LeftOut, untrusted: bool, record: bool, without: Collection[str] = ()
) -> Iterator[Found]:
    """Folders from the top down, each one's files before its folders. A linked folder is searched at its place.

    It is searched once, and not where it is also there as a real folder. Files and folders whose real paths are in
    `without` are passed over.
    """
    searched: set[tuple[int, int]] | None = None  # device and inode of the real folders, and of linked ones searched
    waiting = [(root, False)]
    while waiting:
        folder, linked = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not record:
                raise ValueError(
                    f"folder {folder} cannot be read: {error.strerror}; make it readable, move it away, or pass "
                    "rows=record to go on without it"
                ) from error
            left_out.unreadable.add(_shown(folder, root))
            continue
        if without:
            listed = [entry for entry in listed if os.path.realpath(entry.path) not in without]
        below = [entry for entry in listed if _is_folder(entry)]
        files = [entry for entry in listed if not _is_folder(entry)]
        links = set() if untrusted else {entry.name for entry in files if entry.is_symlink()}
        texts = [entry.name for entry in below if _is_caption(entry.name)]
        within = root if untrusted else None
        yield from _videos(root, folder, [entry.name for entry in files], texts, links, within, left_out)
        chosen = []
        for entry in below:
            link = linked or entry.is_symlink()
            if link and untrusted:
                left_out.links.add(_shown(Path(entry.path), root))
                continue
            if link:
                searched = _real_folders(root) if searched is None else searched
                status = os.stat(entry.path)
                if (status.st_dev, status.st_ino) in searched:
                    left_out.loops.add(_shown(Path(entry.path), root))
                    continue
                searched.add((status.st_dev, status.st_ino))
                if entry.is_symlink() and leaves(Path(entry.path), root):
                    left_out.outside.add(_shown(Path(entry.path), root))
            chosen.append((Path(entry.path), link))
        waiting += reversed(chosen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one into a folder that may not be read
        return False


def _shown(path: Path, root: Path) -> str:
    return os.fsencode(path.relative_to(root)).decode(errors="replace")


def _real_folders(root: Path) -> set[tuple[int, int]]:
    """Device and inode of a folder and of all below it, without following links."""
    found = set()
    for folder, _, _ in os.walk(root):
        status = os.stat(folder)
        found.add((status.st_dev, status.st_ino))
    return found


def _videos(
    root: Path,
    folder: Path,
    files: list[str],
    folders: list[str],
    links: set[str],
    within: Path | None,
    left_out: LeftOut,
) -> Iterator[Found]:
    """The videos of one folder.

    Args:
        files: names of what is there.
        folders: names of folders that are called like a caption, which a row is refused for.
        links: files that are links; those that are used and leave the folder are counted.
        within: the folder that captions must lie in; None allows any place.
    """
    videos = [name for name in files if is_video(name)]
    texts = {same_name(name): name for name in [*files, *folders] if _is_caption(name)}
    used = set()
    for name in videos:
        text = texts.get(same_name(f"{os.path.splitext(name)[0]}.txt"))
        if text is not None:
            used.add(text)
        for file in (name, text):
            if file is not None and file in links and _leaves(folder / file, root):
                left_out.outside.add(_shown(folder / file, root))
        yield _row(root, folder, name, text, within)
    for name in files:
        if not is_video(name) and name not in used and not (folder == root and is_caption_table(name)):
            left_out.file((folder / name).relative_to(root).as_posix())


def _is_caption(name: str) -> bool:
    return name.endswith(".txt") and not name.startswith(".")


def _leaves(path: Path, root: Path) -> bool:
    try:
        return leaves(path, root)
    except OSError:  # a circle of links, which is a problem of the row
        return False


def videos_of_folder(root: Path, without: Sequence[Path] = ()) -> tuple[list[str], list[str], LeftOut]:
    """The videos of a folder at any depth without their captions, in the order of their names.

    Args:
        root: the folder.
        without: files and folders below it that the search passes over and does not count, such as its own results.
    Returns:
        Paths relative to the folder; messages about videos whose names cannot be used; what is no video.
    Raises:
        ValueError: a folder cannot be read; the message says what to do.
    """
    left_out = LeftOut()
    found = list(
        _walk(root, left_out, untrusted=False, record=False, without={os.path.realpath(path) for path in without})
    )
    left_out.videos = len(found)
    return sorted(video for video, _, _ in found if video), [why for video, _, why in found if not video], left_out


def is_video(name: str) -> bool:
    """Whether a file of this name counts as a video where a folder is searched."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def is_caption_table(name: str) -> bool:
    """Whether a file at the top of a folder holds rows for it."""
    return name in CAPTION_TABLES


def _row(root: Path, folder: Path, name: str, text: str | None, within: Path | None) -> Found:
    video = (folder / name).relative_to(root).as_posix()
    try:
        video.encode()
    except UnicodeEncodeError:
        return "", None, f"file name {os.fsencode(video)!r} is not UTF-8; rename the file"
    if text is None:
        return video, None, ""
    shown = f"caption file {_shown(folder / text, root)}"
    try:
        if check_regular(folder / text, within=within, named=shown).st_size > CAPTION_BYTES:
            return video, None, f"{shown} is longer than {CAPTION_BYTES} bytes; shorten it"
        return video, read_text(folder / text, shown).removeprefix("\ufeff"), ""
    except FileNotFoundError:
        return video, None, ""
    except (NotRegular, IsADirectoryError) as error:
        return video, None, f"{shown} {error.strerror}"
    except OSError as error:
        return video, None, f"{shown} cannot be read: {error.strerror}; make it readable"
    except ValueError as error:
        return video, None, str(error)
