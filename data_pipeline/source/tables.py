"""Reads a CSV, TSV, JSONL or Parquet file as batches of rows, every value as the file has it.

A CSV file has the rules of RFC 4180. A TSV file has none (IANA's text/tab-separated-values): a tab parts two values, a
line end parts two rows, and a double quote is a character like any other.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.outside.documents import whole_number
from data_pipeline.source.further import json_column
from data_pipeline.source.names import MANIFEST_SUFFIXES, VIDEO_SUFFIXES
from data_pipeline.source.raw_rows import Column, RawRows, shown, typed_column
from data_pipeline.source.sizes import check_columns, lines_of, parquet_batches
from data_pipeline.store.counted import counted
from data_pipeline.store.text import not_utf8

BATCH_ROWS = 8_192
_NESTED = 256
"""Lists and objects of a row inside each other. Python reads some 900, and then cannot write all that it has read."""
Say = Callable[[str], None]
"""Takes one line for the user."""


_REMEDIES = {
    **dict.fromkeys((".gz", ".zip", ".zst", ".bz2", ".xz", ".tar", ".tgz"), "unpack it first"),
    ".json": "write one JSON object a line and name it .jsonl",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as .csv"),
    **dict.fromkeys(VIDEO_SUFFIXES, "name the folder of the video, or a manifest with a row for it"),
}
"""What to do with a file that is no manifest."""


def read_table(path: Path, name: str, typed: Collection[str], drop: Collection[str], say: Say) -> Iterator[RawRows]:
    """The rows of a manifest file, in batches of at most `BATCH_ROWS`.

    Args:
        path: the file.
        name: what messages call it.
        typed: columns of a JSONL file whose values are used, not only kept.
        drop: columns that are left out.
        say: takes what the user should know.
    Raises:
        ValueError: the file is no manifest or is damaged as a whole. A row that is wrong by itself is a problem of
            its batch.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _csv(path, name)
    if suffix == ".tsv":
        return _tsv(path, name, say)
    if suffix == ".jsonl":
        return _jsonl(path, name, typed, drop)
    if suffix == ".parquet":
        return _parquet(path, name, drop)
    remedy = _REMEDIES.get(suffix, f"use one of {', '.join(MANIFEST_SUFFIXES)} or a folder")
    raise ValueError(f"source {name!r} is not a manifest; {remedy}")


def _csv(path: Path, name: str) -> Iterator[RawRows]:
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(lines_of(file, name), strict=True)
        ended = 0  # line where the last whole row ended

        def rows() -> Iterator[tuple[int, list[str]]]:
            nonlocal ended
            for fields in reader:
                ended = reader.line_num
                if fields:
                    yield ended, fields

        try:
            lines = rows()
            header = _checked_header(next((fields for _, fields in lines), None), name)
            yield from _text_rows(header, lines, "put values that hold a ',' in double quotes")
        except csv.Error as error:
            raise ValueError(
                f"{name} line {ended + 1}: the row that begins here is not valid CSV: {error}; a value that holds a "
                'double quote is written in double quotes, with the inner quote doubled: "he said ""hi"""'
            ) from error
        except UnicodeDecodeError as error:
            raise not_utf8(path, name) from error


def _tsv(path: Path, name: str, say: Say) -> Iterator[RawRows]:
    quoted = 0

    def fields_of(line: str) -> list[str]:
        nonlocal quoted
        fields = line.split("\t")
        if '"' in line:
            quoted += sum(len(value) > 1 and value[0] == value[-1] == '"' for value in fields)
        return fields

    with path.open("rb") as file:
        lines = _decoded(lines_of(file, name), path, name)
        header = _checked_header(next((line.split("\t") for _, line in lines), None), name)
        if any("\r" in column for column in header):
            raise ValueError(f"{name} ends its lines with CR alone; save it with LF or CR LF")
        remedy = "a tab or a line end inside a value cannot be written in TSV: use .csv or .jsonl for that"
        yield from _text_rows(header, ((number, fields_of(line)) for number, line in lines), remedy)
    if quoted:
        say(
            f"{name}: {counted(quoted, 'value')} in double quotes kept with the quotes, because TSV has no quoting; if "
            "a program put the quotes there, save the manifest as .csv or .jsonl"
        )


def _decoded(file: Iterator[bytes], path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    for number, line in enumerate(file, 1):
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise not_utf8(path, name) from error
        text = text.removeprefix("\ufeff") if number == 1 else text
        if text:
            yield number, text


def _checked_header(header: list[str] | None, name: str) -> list[str]:
    if header is None:
        raise ValueError(f"{name} is empty; its first line must name the columns: video,caption,...")
    if len(set(header)) != len(header):
        raise ValueError(f"{name}: the header names a column twice: {', '.join(header)}")
    check_columns(header, name)
    return header


def _text_rows(header: list[str], rows: Iterator[tuple[int, list[str]]], remedy: str) -> Iterator[RawRows]:
    """Rows of text, given with the number of their last line, in batches. An empty value is no value."""
    first = 1
    while chunk := list(islice(rows, BATCH_ROWS)):
        problems = {}
        for position, (line, fields) in enumerate(chunk):
            if len(fields) != len(header):
                width = f"line {line} has {counted(len(fields), 'field')}, the header {len(header)}"
                problems[position] = f"{width}; {remedy}"
                chunk[position] = (line, [""] * len(header))
        columns = zip(*(fields for _, fields in chunk), strict=True)
        yield RawRows(
            {
                column: Column(pa.array([value or None for value in values], pa.string()))
                for column, values in zip(header, columns, strict=True)
            },
            numbers(first, len(chunk)),
            problems,
        )
        first += len(chunk)


def _jsonl(path: Path, name: str, typed: Collection[str], drop: Collection[str]) -> Iterator[RawRows]:
    first = 1
    with path.open("rb") as file:
        lines = (line for line in lines_of(file, name) if line.strip())
        while chunk := list(islice(lines, BATCH_ROWS)):
            rows: list[dict[str, Any]] = []
            problems = {}
            for position, line in enumerate(chunk):
                row, problem = _json_row(line, path, name)
                rows.append(row)
                if problem:
                    problems[position] = problem
            found = dict.fromkeys(column for row in rows for column in row)
            check_columns(found, f"{name} rows {first} to {first + len(rows) - 1}")
            columns = {
                column: typed_column([row.get(column) for row in rows])
                if column in typed
                else json_column(column, [row.get(column) for row in rows], problems)
                for column in found
                if column not in drop
            }
            yield RawRows(columns, numbers(first, len(rows)), problems, tuple(found.keys() & set(drop)))
            first += len(rows)


def _json_row(line: bytes, path: Path, name: str) -> tuple[dict[str, Any], str]:
    """The object of a line; where there is none of use, an empty one and the reason."""
    try:
        row = _DECODER.decode(line.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, name) from error
    except json.JSONDecodeError as error:
        return {}, f"is not JSON: {error.msg} at character {error.pos + 1} of its line"
    except (ValueError, RecursionError) as error:
        return {}, f"is not JSON: {error}"
    if not isinstance(row, dict):
        return {}, f"is not a JSON object but {type(row).__name__}"
    if line.count(b"[") + line.count(b"{") > _NESTED and _is_deep(row):
        return {}, f"holds more than {_NESTED} lists or objects inside each other; write less deep ones"
    if b"\\u" in line and (column := next((key for key, value in row.items() if _half_pair(key, value)), None)):
        return {}, f"column {shown(column)} holds half of a surrogate pair, which is no character; mend the text"
    return row, ""


def _is_deep(row: dict[str, Any]) -> bool:
    """Whether a row has more than `_NESTED` lists or objects inside each other, itself included."""
    level: list[Any] = [row]
    for _ in range(_NESTED):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the name {shown(twice)} stands there twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=whole_number)


def _half_pair(key: str, value: Any) -> bool:
    try:
        json.dumps([key, value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _parquet(path: Path, name: str, drop: Collection[str]) -> Iterator[RawRows]:
    first = 1
    try:
        names = pq.read_schema(path).names
        _checked_header(names or None, name)
        unread = tuple(column for column in names if column in drop)
        if len(unread) == len(names):  # Arrow does not count the rows of no columns
            raise ValueError(f"{name}: columns.drop leaves all of its columns out; keep the one that names the videos")
        for batch in parquet_batches(path, name, BATCH_ROWS, [column for column in names if column not in drop]):
            columns = dict(zip(batch.schema.names, map(Column, batch.columns), strict=True))
            yield RawRows(columns, numbers(first, batch.num_rows), unread=unread)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name} cannot be read as Parquet: {error}") from error


def numbers(first: int, count: int) -> np.ndarray:
    """The numbers of `count` rows."""
    return np.arange(first, first + count, dtype=np.int64)
