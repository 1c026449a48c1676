"""Tables of normalised rows: cut to a given length, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.source.rows import PROBLEM, ROW_SCHEMA

DIGEST_ROWS = 8_192
"""Rows that are hashed together. The number is part of the digest's definition: another one gives other digests."""


def rechunked(batches: Iterable[pa.RecordBatch], lengths: Iterable[int]) -> Iterator[pa.Table]:
    """The same rows in tables of exactly these lengths (the last may be shorter).

    Args:
        lengths: at least 1 each; together no less than there are rows.
    """
    wanted = iter(lengths)
    pieces: list[pa.RecordBatch] = []
    count = rows = 0
    for batch in batches:
        while batch.num_rows:
            rows = rows or next(wanted)
            piece = batch.slice(0, rows - count)
            pieces.append(piece)
            count += piece.num_rows
            batch = batch.slice(piece.num_rows)
            if count == rows:
                yield pa.Table.from_batches(pieces)
                pieces, count, rows = [], 0, 0
    if pieces:
        yield pa.Table.from_batches(pieces)


def digest_tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in the tables that `RowsDigest` takes."""
    return rechunked(batches, repeat(DIGEST_ROWS))


class RowsDigest:
    """SHA-256 over normalised rows; `add` takes tables of DIGEST_ROWS rows (the last one may be shorter)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, table: pa.Table) -> None:
        for field in ROW_SCHEMA:
            if field.name == "row":
                continue  # it follows from the position; an appended manifest has other numbers
            if field.name == PROBLEM and not has_problems(table):
                continue  # a manifest without wrong rows has the digest that it had before this column was there
            self._add_column(table.column(field.name).combine_chunks())

    def _add_column(self, column: pa.Array) -> None:
        self._hash.update(np.asarray(column.is_valid()).tobytes())
        if pa.types.is_floating(column.type):
            self._hash.update(column.fill_null(0.0).to_numpy(zero_copy_only=False).tobytes())
            return
        text = column.fill_null("")
        offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
        self._hash.update((offsets - offsets[0]).tobytes())
        data = text.buffers()[2]
        if data is not None:
            self._hash.update(data[int(offsets[0]) : int(offsets[-1])])

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def has_problems(table: pa.Table) -> bool:
    return PROBLEM in table.column_names and bool(pc.any(pc.not_equal(table.column(PROBLEM), "")).as_py())
