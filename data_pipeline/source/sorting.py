"""Brings the rows of each video of a manifest together, so that a build fetches the video once."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.outside.regular import check_regular
from data_pipeline.source.names import starts_from_a_folder
from data_pipeline.source.sizes import check_columns, lines_of, parquet_batches
from data_pipeline.store.files import atomic_file
from data_pipeline.store.text import not_utf8

MOST_BYTES = 2**33
"""Bytes of a manifest whose rows are brought together, because they are held in memory."""


@dataclass(frozen=True)
class Together:
    """What sorting has done."""

    rows: int
    videos: int
    moved: int  # rows that stand at another position now


def bring_together(source: Path, output: Path, column: str = "video") -> Together:
    """Write a manifest with the rows of each video beside each other, in the place of the first of them.

    The order of the videos, and that of the rows of one video, stay, and so does every value. The rows are held in
    memory.

    Args:
        source: .csv, .tsv, .jsonl or .parquet.
        output: a file with the same suffix.
        column: which column names the video.
    Raises:
        OSError: it is no regular file.
        ValueError: more than `MOST_BYTES`, a row that is too long, another suffix, no such column, a file that cannot
            be read as what its suffix says, or relative videos and an output in another folder.
    """
    suffix = source.suffix.lower()
    if (size := check_regular(source, named=str(source)).st_size) > MOST_BYTES:
        raise ValueError(
            f"--source {source} has {size} bytes, and at most {MOST_BYTES} are sorted in memory; divide it into files"
        )
    if output.suffix.lower() != suffix:
        raise ValueError(f"--output {output} must end in {suffix}, as --source {source} does")
    kinds = {".csv": _csv, ".tsv": _lines, ".jsonl": _lines, ".parquet": _parquet}
    if suffix not in kinds:
        raise ValueError(f"--source {source} is no manifest file; name one that ends in {', '.join(kinds)}")
    return kinds[suffix](source, output, column)


def _order(videos: Sequence[Hashable], source: Path, output: Path) -> tuple[list[int], Together]:
    """The positions of the rows in their new order."""
    moves = output.parent.resolve() != source.parent.resolve()
    if moves and any(isinstance(video, str) and starts_from_a_folder(video) for video in videos):
        raise ValueError(
            f"{source.name} has relative videos, which start from the folder of their manifest; let --output lie in "
            f"{source.parent}"
        )
    places: dict[Hashable, int] = {}
    ranks = [places.setdefault(video, len(places)) for video in videos]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    moved = sum(position != row for position, row in enumerate(order))
    return order, Together(len(order), len(places), moved)


def _position(header: Sequence[str], column: str, source: Path) -> int:
    if column not in header:
        raise ValueError(
            f"{source.name} has no column {column!r}, only {', '.join(map(repr, header))[:400]}; name the column of "
            "the videos with --video"
        )
    return header.index(column)


def _csv(source: Path, output: Path, column: str) -> Together:
    csv.field_size_limit(1 << 24)
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            lines = lines_of(file, source.name)
            header, *rows = [fields for fields in csv.reader(lines, strict=True) if fields] or [[]]
    except csv.Error as error:
        raise ValueError(f"{source.name} is not valid CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise not_utf8(source, source.name) from error
    position = _position(header, column, source)
    order, done = _order([row[position] if position < len(row) else "" for row in rows], source, output)
    with atomic_file(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        for fields in (header, *(rows[row] for row in order)):
            # csv.writer quotes only the line ends that it writes, but csv.reader ends a row at a bare CR, too
            quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in value for value in fields) else csv.QUOTE_MINIMAL
            csv.writer(file, lineterminator="\n", quoting=quoting).writerow(fields)
    return done


def _lines(source: Path, output: Path, column: str) -> Together:
    """A file with one row a line, whose bytes stay."""
    raw = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(source, source.name) from error
    tabs = source.suffix.lower() == ".tsv"
    with BytesIO(raw) as file:
        lines, numbers = [], array("q")  # an array, because there may be ten million lines
        for number, line in enumerate(lines_of(file, source.name), 1):
            line = line.removesuffix(b"\n")
            if line.strip(b"\r" if tabs else None):
                lines.append(line)
                numbers.append(number)
    header: list[bytes] = []
    if tabs:
        header, lines = lines[:1], lines[1:]
        names = header[0].decode().rstrip("\r").split("\t") if header else []
        position = _position(names, column, source)
        values = [line.rstrip(b"\r").split(b"\t") for line in lines]
        videos: list[Hashable] = [fields[position].decode() if position < len(fields) else "" for fields in values]
    else:
        videos = [
            _json_video(line, column, f"{source.name} line {number}")
            for number, line in zip(numbers, lines, strict=True)
        ]
    order, done = _order(videos, source, output)
    with atomic_file(output) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in [*header, *(lines[row] for row in order)]))
    return done


def _json_video(line: bytes, column: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}; mend it first") from error
    if not isinstance(row, dict) or column not in row:
        raise ValueError(f"{place} has no {column!r}; name the column of the videos with --video, or mend the line")
    return row[column] if isinstance(row[column], str) else json.dumps(row[column])


def _parquet(source: Path, output: Path, column: str) -> Together:
    try:
        schema = pq.read_schema(source)
        check_columns(schema.names, source.name)
        batches = list(parquet_batches(source, source.name, 8_192))
        table = pa.Table.from_batches(batches).cast(schema) if batches else schema.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source.name} cannot be read as Parquet: {error}") from error
    _position(table.column_names, column, source)
    videos = table.column(column)
    if not (
        pa.types.is_string(videos.type) or pa.types.is_large_string(videos.type) or pa.types.is_integer(videos.type)
    ):
        raise ValueError(f"{source.name}: column {column!r} has the type {videos.type}; name a column of texts")
    order, done = _order(videos.to_pylist(), source, output)
    with atomic_file(output) as temporary:
        pq.write_table(table.take(pa.array(order, pa.int64())), temporary)
    return done
