"""Reads folders and manifests of captioned videos as one stream of checked rows.

The rows come in Arrow batches of at most `tables.BATCH_ROWS`, so memory never holds all of them. Row numbers start at
1 and do not count the header. The path of a video stays as it is written (relative to `Manifest.base`), so the digest
of a manifest does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.outside.regular import NotRegular, check_regular
from data_pipeline.source.columns import ColumnMap
from data_pipeline.source.config import ColumnsConfig, WrongRows
from data_pipeline.source.folder import FileNames, folder_rows
from data_pipeline.source.left_out import LeftOut
from data_pipeline.source.lists import one_row_an_item
from data_pipeline.source.names import CAPTION_TABLES, VIDEO_SUFFIXES
from data_pipeline.source.places import Place, Places
from data_pipeline.source.raw_rows import MappedRows
from data_pipeline.source.remote_folder import remote_rows
from data_pipeline.source.rows import normalise
from data_pipeline.source.tables import Say, read_table
from data_pipeline.store.counted import counted

LISTED = 20
"""Wrong rows that a refusal lists."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How manifests are read."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    rows: WrongRows = WrongRows.STRICT
    needs_caption: bool = False  # a manifest without a column of captions is refused
    untrusted: bool = False  # links to folders are not followed
    say: Say = lambda line: None  # takes what the user should know, line by line


@dataclass(frozen=True)
class Manifest:
    """An opened manifest. `batches` can be read once; open the manifest again for another pass."""

    name: str  # for messages
    base: str  # folder or s3://bucket/prefix that relative paths of videos start from
    batches: Iterator[pa.RecordBatch]  # of ROW_SCHEMA, in order


def open_manifest(source: str | Path, options: ReadOptions | None = None) -> Manifest:
    """Open one local folder or manifest file; see `open_places`."""
    path = Path(source)
    name = str(path) if path.is_dir() else path.name
    base = path.absolute() if path.is_dir() else path.absolute().parent
    return open_places(Places((Place(name, path),), str(base)), options or ReadOptions())


def open_places(places: Places, options: ReadOptions) -> Manifest:
    """Open folders and manifest files, whose rows follow each other.

    A folder is searched recursively, and the caption of `a/b.mp4` is the text of `a/b.txt`. When the folder contains a
    `captions.csv` (or .tsv, .jsonl, .parquet), the rows of that file come first, and the videos that it does not name
    follow.

    Raises:
        ValueError: a source is missing or of an unknown kind; while the rows are read: the first wrong rows with
            their numbers, unless `options.rows` records them.
    """
    for place in places.places:
        if place.path is not None and not place.path.exists():
            raise ValueError(f"source {str(place.path)!r} does not exist; give a folder of videos or a manifest file")
    return Manifest(places.name, places.base, _checked(places.name, _all_rows(places, options), options))


def _all_rows(places: Places, options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """The rows of all places, numbered from 1."""
    first = 1
    told: set[str] = set()
    for place in places.places:
        before, read = first, _Reader(place, options, told)
        rows = (
            read.table(place.path, first) if place.path is not None and not place.path.is_dir() else read.folder(first)
        )
        for batch in rows:
            yield batch
            first += batch.num_rows
        if first == before and len(places.places) > 1:
            options.say(f"{place.name} has no rows")


class _Reader:
    """Reads the rows of one place.

    Args:
        told: what the user knows already: of manifests with the same columns only the first is described.
    """

    def __init__(self, place: Place, options: ReadOptions, told: set[str]) -> None:
        self.place, self.options, self.told = place, options, told
        self._names = FileNames(place.path or Path())

    def table(self, path: Path, first: int) -> Iterator[pa.RecordBatch]:
        """The rows of a manifest file. `first` is the number of the first one."""
        options, name = self.options, self.place.name if path == self.place.path else path.name
        try:
            check_regular(path, within=path.parent if options.untrusted else None, named=name)
        except (NotRegular, IsADirectoryError) as error:
            raise ValueError(f"{name} {error.strerror}") from error
        columns = ColumnMap(options.columns, name)
        checked, like_lists, spaced = False, 0, 0
        for raw in read_table(path, name, columns.typed, columns.dropped, options.say):
            if raw.columns and not checked:
                checked = True
                self._tell(name, columns.check(raw, needs_caption=options.needs_caption))
            for rows in one_row_an_item(columns.apply(raw), columns.explode):
                batch = normalise(rows, first, name, self.place.prefix)
                captions = batch.column("caption")
                like_lists += pc.sum(pc.match_substring_regex(captions, r"^\[.*['\"].*\]$")).as_py() or 0
                videos = batch.column("video")
                spaced += pc.sum(pc.not_equal(videos, pc.utf8_trim_whitespace(videos))).as_py() or 0
                yield batch
                first += batch.num_rows
        if spaced:
            options.say(f"{name}: {counted(spaced, 'video')} with white space at an end of the name, which is kept")
        if like_lists:
            options.say(
                f"{name}: {counted(like_lists, 'caption')} written like a list and kept as one text; "
                "columns.explode=[COLUMN] makes a row of each item"
            )

    def _tell(self, name: str, columns: str) -> None:
        if columns not in self.told:
            self.options.say(f"{name}: {columns}")
        self.told.add(columns)

    def folder(self, first: int) -> Iterator[pa.RecordBatch]:
        """The rows of a folder, of this machine or of a store."""
        place, begin = self.place, first
        named: set[str] = set()
        for table in self._tables():
            for batch in self.table(table, first):
                # A wrong row may name no video, and what the search finds under no name must not count as named.
                named.update(self._name_of(video) for video in batch.column("video").to_pylist() if video)
                yield batch
                first += batch.num_rows
        left_out = LeftOut()
        for rows in self._search(named, left_out):
            yield normalise(rows, first, place.name.rpartition("/")[2], place.prefix)
            first += len(rows.numbers)
        if first == begin and left_out.manifests:
            others = left_out.without_manifests()
            if others != LeftOut():
                self.options.say(others.line(place.name))
            yield from self._manifests(sorted(left_out.manifests), first)
            return
        self.options.say(left_out.line(place.name))
        if first == begin:
            searched = f"looked for {' '.join(sorted(VIDEO_SUFFIXES))} at any depth"
            if place.store is None:
                raise ValueError(f"no videos in {place.path}; {searched}")
            raise ValueError(
                f"no videos in {place.store.uri()}; {searched}; the beginning of manifests' names is written with a "
                "star, as in s3://bucket/meta/part-*"
            )

    def _manifests(self, names: list[str], first: int) -> Iterator[pa.RecordBatch]:
        """The rows of the manifests of a folder without videos."""
        place = self.place
        self.options.say(f"{place.name} holds no videos but {counted(len(names), 'manifest')}, whose rows are read")
        for number, name in enumerate(names):
            if place.store is None:
                assert place.path is not None
                path = place.path / name
            else:
                assert place.scratch is not None
                path = place.scratch / f"{number}-{name.rpartition('/')[2]}"  # a key may hold `..`, a path must not
                place.store.read_to_file(name, path)
            prefix = "/".join(part for part in (place.prefix, name.rpartition("/")[0]) if part)
            manifest = Place(f"{place.name}/{name}", path, prefix=prefix)
            for batch in _Reader(manifest, self.options, self.told).table(path, first):
                yield batch
                first += batch.num_rows

    def _search(self, named: set[str], left_out: LeftOut) -> Iterator[MappedRows]:
        if self.place.store is not None:
            return remote_rows(self.place.store, named, left_out)
        assert self.place.path is not None
        record = self.options.rows is WrongRows.RECORD
        return folder_rows(self.place.path, named, left_out, untrusted=self.options.untrusted, record=record)

    def _tables(self) -> list[Path]:
        """The caption table of the folder, if it has one; from a store a copy."""
        store, folder = self.place.store, self.place.path or self.place.scratch
        assert folder is not None
        names = [name for name in CAPTION_TABLES if (store.exists(name) if store else (folder / name).exists())]
        if len(names) > 1:
            raise ValueError(f"{self.place.name} holds {', '.join(names)}; keep one of them, or name it as the source")
        if store is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                store.read_to_file(name, folder / name)
        return [folder / name for name in names]

    def _name_of(self, video: str) -> str:
        """A video of a table as the search of the folder names it."""
        video = video.removeprefix(f"{self.place.prefix}/") if self.place.prefix else video
        if self.place.store is not None:
            return video.removeprefix(f"{self.place.store.uri()}/").removeprefix("./")
        return self._names.name(video)


def _checked(name: str, batches: Iterator[pa.RecordBatch], options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """The batches, unless rows are wrong that must not be."""
    wrong: list[str] = []
    rows = problems = 0
    for batch in batches:
        rows += batch.num_rows
        bad = pc.not_equal(batch.column("problem"), "")
        if pc.any(bad).as_py():
            listed = batch.filter(bad).select(["id", "problem"])
            problems += listed.num_rows
            wrong += [f"{row['id']}: {row['problem']}" for row in listed.slice(0, LISTED).to_pylist()]
            if options.rows is WrongRows.STRICT and problems >= LISTED:
                break
        if not wrong or options.rows is WrongRows.RECORD:
            yield batch
    if not rows:
        raise ValueError(f"{name} has no rows")
    if problems and options.rows is WrongRows.STRICT:
        raise ValueError(_refusal(wrong[:LISTED], problems >= LISTED))
    if problems:
        options.say(f"{name}: {problems} of {rows} rows are wrong and become rejected rows of the dataset")


def _refusal(wrong: list[str], more: bool) -> str:
    remedy = "mend the manifest, or pass rows=record to have wrong rows rejected in the ledger"
    if len(wrong) == 1:
        return f"{wrong[0]} ({remedy})"
    lines = ";\n  ".join(wrong)
    return f"{'the first ' if more else ''}{len(wrong)} wrong rows; {remedy}:\n  {lines}"
