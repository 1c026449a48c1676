"""Reads folders and manifests of captioned videos as one stream of checked rows.

The rows come in Arrow batches of at most `tables.BATCH_ROWS`, so memory never holds all of them. Row numbers start at
1 and do not count the header. The path of a video stays as it is written (relative to `Manifest.base`), so the digest
of a manifest does not depend on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.source.columns import ColumnMap
from data_pipeline.source.config import ColumnsConfig, WrongRows
from data_pipeline.source.folder import LeftOut, folder_rows
from data_pipeline.source.lists import one_row_an_item
from data_pipeline.source.names import MANIFEST_SUFFIXES, VIDEO_SUFFIXES
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
    """Open a local folder or manifest file.

    A folder is searched recursively, and the caption of `a/b.mp4` is the text of `a/b.txt`. When the folder contains a
    `captions.csv` (or .tsv, .jsonl, .parquet), the rows of that file come first, and the videos that it does not name
    follow.

    Raises:
        ValueError: the source is missing or of an unknown kind; while the rows are read: the first wrong rows with
            their numbers, unless `options.rows` records them.
    """
    path, options = Path(source), options or ReadOptions()
    if path.is_dir():
        return Manifest(str(path), str(path.absolute()), _checked(str(path), _folder(path, options), options))
    if not path.exists():
        raise ValueError(f"source {str(path)!r} does not exist; give a folder of videos or a manifest file")
    return Manifest(path.name, str(path.absolute().parent), _checked(path.name, _table(path, options), options))


def _table(path: Path, options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """The rows of a manifest file, numbered from 1."""
    columns = ColumnMap(options.columns, path.name)
    first, like_lists = 1, 0
    for raw in read_table(path, path.name, columns.typed, columns.dropped, options.say):
        if first == 1:
            options.say(columns.check(raw, needs_caption=options.needs_caption))
        for rows in one_row_an_item(columns.apply(raw), columns.explode):
            batch = normalise(rows, first, path.name)
            like_lists += pc.sum(pc.match_substring_regex(batch.column("caption"), r"^\[.*['\"].*\]$")).as_py() or 0
            yield batch
            first += batch.num_rows
    if like_lists:
        options.say(
            f"{path.name}: {counted(like_lists, 'caption')} written like a list and kept as one text; "
            "columns.explode=[COLUMN] makes a row of each item"
        )


def _folder(path: Path, options: ReadOptions) -> Iterator[pa.RecordBatch]:
    tables = [path / f"captions{suffix}" for suffix in MANIFEST_SUFFIXES if (path / f"captions{suffix}").exists()]
    if len(tables) > 1:
        raise ValueError(
            f"{path} holds {', '.join(t.name for t in tables)}; keep one of them, or name it as the source"
        )
    named: set[str] = set()
    first = 1
    for table in tables:
        for batch in _table(table, options):
            named.update(_inside(video, path) for video in batch.column("video").to_pylist())
            yield batch
            first += batch.num_rows
    left_out = LeftOut()
    record = options.rows is WrongRows.RECORD
    for rows in folder_rows(path, named, left_out, untrusted=options.untrusted, record=record):
        yield normalise(rows, first, path.absolute().name)
        first += len(rows.numbers)
    options.say(left_out.line(str(path)))
    if first == 1:
        raise ValueError(f"no videos in {path}; looked for {' '.join(sorted(VIDEO_SUFFIXES))} at any depth")


def _inside(video: str, folder: Path) -> str:
    """A video of a table as the search of the folder names it: relative where it lies in the folder."""
    path = os.path.normpath(video)
    for root in (folder.absolute(), folder.resolve()):
        if os.path.isabs(path) and Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return path


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
