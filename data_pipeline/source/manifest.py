"""Reads a folder, CSV, JSONL or Parquet of captioned videos as one stream of normalised, checked rows.

The rows come in Arrow batches of at most `BATCH_ROWS`, so memory never holds all of them. Row numbers start at 1 and do
not count the header. The path of a video stays as it is written (relative to `Manifest.base`), so the digest of a
manifest does not depend on the machine.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.source.names import MANIFEST_SUFFIXES, VIDEO_SUFFIXES
from data_pipeline.source.rows import MIXED, normalise
from data_pipeline.store.text import not_utf8, read_text

BATCH_ROWS = 8_192


@dataclass(frozen=True)
class Manifest:
    """An opened manifest. `batches` can be read once; open the manifest again for another pass."""

    name: str  # for messages
    base: str  # folder or s3://bucket/prefix that relative paths of videos start from
    batches: Iterator[pa.RecordBatch]  # of ROW_SCHEMA, in order


def open_manifest(source: str | Path) -> Manifest:
    """Open a local folder or manifest file.

    A folder is searched recursively, and the caption of `a/b.mp4` is the text of `a/b.txt`. When the folder contains a
    `captions.csv` (or .tsv, .jsonl, .parquet), the rows of that file come first, and the videos that it does not name
    follow.

    Raises:
        ValueError: the source is missing or of an unknown kind; while the rows are read: a wrong row, with its number.
    """
    path = Path(source)
    if path.is_dir():
        return Manifest(str(path), str(path.absolute()), _normalised(str(path), _folder(path)))
    if not path.exists():
        raise ValueError(f"source {str(path)!r} does not exist; give a folder of videos or a manifest file")
    return Manifest(path.name, str(path.absolute().parent), _normalised(path.name, _raw_file(path)))


def _raw_file(path: Path) -> Iterator[pa.RecordBatch]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _batched(_csv_rows(path, "\t" if suffix == ".tsv" else ","))
    if suffix == ".jsonl":
        return _batched(_json_rows(path))
    if suffix == ".parquet":
        return _parquet(path)
    raise ValueError(f"source {path.name!r} is not a manifest; use one of {', '.join(MANIFEST_SUFFIXES)} or a folder")


def _batched(rows: Iterator[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Python rows as batches. A column gets the type of its values; mixed values become JSON text (`MIXED`)."""
    while chunk := [row for _, row in zip(range(BATCH_ROWS), rows, strict=False)]:
        names = {name: None for row in chunk for name in row}
        fields, arrays = [], []
        for name in names:
            values = [row.get(name) for row in chunk]
            try:
                array, metadata = pa.array(values), None
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
                array = pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
                metadata = MIXED
            arrays.append(array)
            fields.append(pa.field(name, array.type, metadata=metadata))
        yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise ValueError(f"{path.name} is empty; its first line must name the columns: video,caption,...")
            if len(set(header)) != len(header):
                raise ValueError(f"{path.name}: the header names a column twice: {', '.join(header)}")
            number = 0
            for fields in reader:
                if not fields:
                    continue
                number += 1
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path.name} row {number} (line {reader.line_num}) has {len(fields)} fields, the header "
                        f"{len(header)}; put values that hold a {delimiter!r} in double quotes"
                    )
                yield dict(zip(header, (value or None for value in fields), strict=True))
        except csv.Error as error:
            raise ValueError(f"{path.name} line {reader.line_num}: not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise not_utf8(path, path.name) from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            number += 1
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise not_utf8(path, path.name) from error
            except ValueError as error:
                raise ValueError(f"{path.name} row {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path.name} row {number} is not a JSON object but {type(row).__name__}")
            yield row


def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        # pre_buffer keeps every byte it read until the file is closed: 0.3 GB for ten million short rows
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(BATCH_ROWS)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as Parquet: {error}") from error


def _folder(path: Path) -> Iterator[pa.RecordBatch]:
    tables = [path / f"captions{suffix}" for suffix in MANIFEST_SUFFIXES if (path / f"captions{suffix}").exists()]
    if len(tables) > 1:
        raise ValueError(
            f"{path} holds {', '.join(t.name for t in tables)}; keep one of them, or name it as the source"
        )
    named: set[str] = set()
    for table in tables:
        for batch in _raw_file(table):
            if "video" in batch.schema.names:
                named.update(os.path.normpath(v) for v in batch.column("video").to_pylist() if isinstance(v, str))
            yield batch
    videos = 0
    for batch in _batched(_walk(path, named)):
        videos += batch.num_rows
        yield batch
    if not videos and not named:
        raise ValueError(f"no videos in {path}; looked for {' '.join(sorted(VIDEO_SUFFIXES))} at any depth")


def _walk(root: Path, named: set[str]) -> Iterator[dict[str, Any]]:
    for directory, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(directory, name)
            video = path.relative_to(root).as_posix()
            if path.suffix.lower() not in VIDEO_SUFFIXES or name.startswith(".") or video in named:
                continue
            yield {"video": _utf8(video, root), "caption": _caption_beside(path)}


def _utf8(name: str, root: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"file name {os.fsencode(name)!r} in {root} is not UTF-8; rename the file") from None
    return name


def _caption_beside(video: Path) -> str | None:
    text = video.with_suffix(".txt")
    try:
        return read_text(text, f"caption file {text}")
    except FileNotFoundError:
        return None


def _normalised(name: str, raw: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    first = 1
    for batch in raw:
        if batch.num_rows:
            yield normalise(batch, first, name)
            first += batch.num_rows
    if first == 1:
        raise ValueError(f"{name} has no rows")
