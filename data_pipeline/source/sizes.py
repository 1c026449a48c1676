"""Bounds of what a manifest may hold, because a file of some kilobytes can stand for more than a memory holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_TEXT = 2**28
"""Bytes of one column in the rows that are read together."""
MOST_LINE = 2**26
"""Characters of one line of a text file."""
MOST_COLUMNS = 4096
"""Columns of a table, or names in the objects of the rows that are read together."""
_ITEM = 16
"""Bytes that an item of a list takes at least, once it is an object."""


def lines_of(file: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    """The lines of a file, as iterating over it gives them.

    Raises:
        ValueError: a line has more than `MOST_LINE` characters; the message names the line.
    """
    number = 1
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise ValueError(
                f"{name} line {number} has {MOST_LINE} characters or more, and is no row of a manifest; mend the file"
            )
        yield line
        number += 1


def check_columns(columns: Collection[str], name: str) -> None:
    """Refuse a table of too many columns. Raises: ValueError."""
    if len(columns) > MOST_COLUMNS:
        raise ValueError(
            f"{name}: it has {len(columns)} columns, and at most {MOST_COLUMNS} are read; take the others out"
        )


def parquet_batches(
    source: Path | Any, name: str, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, measured before they take their memory.

    A text that all rows share lies once in the file. It is read as such a dictionary, measured, and only then given to
    the rows.

    Args:
        source: the file, or its bytes as a file.
        name: what messages call it.
        rows: of a batch, at most.
        columns: of no two the same name; None = all.
    Raises:
        ValueError: a column is too large; the message names the rows.
        pa.ArrowException, OSError: it is no Parquet file.
    """
    schema = pq.read_schema(source)
    with pq.ParquetFile(source, pre_buffer=False) as file:
        leaves = [file.schema.column(place) for place in range(len(file.schema))]
        # What the file says of its row groups is not asked: Arrow ends the process where that is damaged.
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    first = 1
    # pre_buffer keeps every byte it read until the file is closed: 0.3 GB for ten million short rows
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, read_dictionary=texts) as file:
        for batch in file.iter_batches(rows, columns=columns):
            arrays = []
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                _check_values(values, f"{name}: column {column!r}")
                check_size(values, f"{name} rows {first} to {first + len(values) - 1}: column {column!r}")
                kind = schema.field(column).type
                arrays.append(values if values.type == kind or pa.types.is_dictionary(kind) else values.cast(kind))
            yield pa.RecordBatch.from_arrays(arrays, batch.schema.names)
            first += batch.num_rows


def _check_values(values: pa.Array, place: str) -> None:
    """Parquet promises neither that a text is UTF-8 nor that a place in a dictionary is one."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        raise ValueError(f"{place} holds a text that is not UTF-8 ({error}); write the texts as UTF-8") from error


def check_size(values: pa.Array, what: str) -> None:
    """Refuse a column that takes too much memory once its values are taken out of Arrow.

    Args:
        values: of the rows that are read together.
        what: how messages name rows and column, such as `m.parquet rows 1 to 8192: their video`.
    Raises:
        ValueError: it would take more than `MOST_TEXT` bytes.
    """
    total = _size(values)
    if total > MOST_TEXT:
        raise ValueError(
            f"{what} holds {total / 1e6:.0f} MB, and at most {MOST_TEXT / 1e6:.0f} MB are read of {len(values)} rows; "
            "shorten the values"
        )


def _size(values: pa.Array) -> int:
    kind = values.type
    if pa.types.is_dictionary(kind):
        texts = values.dictionary
        if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
            return pc.sum(pc.cast(pc.binary_length(texts), pa.int64()).take(values.indices)).as_py() or 0
        return len(values) * max(1, _size(texts))
    if pa.types.is_struct(kind):
        return len(values) * _ITEM + sum(map(_size, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        items = values.flatten()
        return len(items) * _ITEM + _size(items)
    if pa.types.is_map(kind):
        return len(values.keys) * 2 * _ITEM + _size(values.keys) + _size(values.items)
    return int(values.nbytes)
