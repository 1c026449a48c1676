"""Bounds of what a manifest may hold, because a file of some kilobytes can stand for more than a memory holds."""

from __future__ import annotations

from collections import Counter
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
_STEP = 256
"""Rows that are read before they are measured, where no text that they share is long."""
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

    Args:
        source: the file, or its bytes as a file.
        name: what messages call it.
        rows: of a batch; the last one may have fewer.
        columns: of no two the same name; None = all.
    Raises:
        ValueError: a column is too large; the message names the rows.
        pa.ArrowException, OSError: it is no Parquet file.
    """
    held = _Held(pq.read_schema(source), name, rows)
    for some in _few_rows(source, rows, columns):
        held.add(some)
        while held.count >= rows:
            yield held.take()
    if held.count:
        yield held.take()


def _few_rows(source: Path | Any, rows: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """A few rows at a time; texts may stand as places in a dictionary.

    A text that all rows share lies once in the file, in a dictionary. Arrow gives a dictionary whole with the first of
    its rows, which tells the longest text. Where `rows` of it would be too much, the texts are read as places in the
    dictionary. This is not done everywhere, because Arrow then collects all texts of a row group in its memory.
    """
    with pq.ParquetFile(source, pre_buffer=False) as file:
        leaves = [file.schema.column(place) for place in range(len(file.schema))]
        groups = range(file.num_row_groups)
    # What the file says of its row groups is not asked: Arrow ends the process where that is damaged.
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    nested = [path for path in texts if "." in path]  # one row may hold any number of them
    # pre_buffer keeps every byte it read until the file is closed: 0.3 GB for ten million short rows
    with (
        pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, read_dictionary=nested) as plain,
        pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, read_dictionary=texts) as places,
    ):
        for group in groups:
            begun = next(places.iter_batches(1, row_groups=[group], columns=columns), None)
            longest = max(map(_longest, begun.columns), default=0) if begun is not None else 0
            file, together = (plain, _STEP) if longest * rows <= MOST_TEXT else (places, rows)
            yield from file.iter_batches(together, row_groups=[group], columns=columns)


def _longest(values: pa.Array) -> int:
    """Bytes of the longest text or value of bytes in the dictionary of a column; 0 for a column without one."""
    if not pa.types.is_dictionary(values.type):
        return 0
    kind = values.type.value_type
    if not (_is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return 0
    return pc.max(pc.binary_length(values.dictionary)).as_py() or 0


class _Held:
    """Rows that are read and not given yet. They are measured, and only then get the types of the file.

    Attributes:
        count: of these rows.

    Args:
        schema: of the file.
        name: of the file in messages.
        rows: that are given together.
    """

    def __init__(self, schema: pa.Schema, name: str, rows: int) -> None:
        self._schema, self._name, self._rows = schema, name, rows
        self._batches: list[pa.RecordBatch] = []
        self._sizes: Counter[str] = Counter()
        self._given = self.count = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Hold some more rows. Raises: ValueError: a column of them and those before is too large, or damaged."""
        self.count += batch.num_rows
        arrays = []
        for column, values in zip(batch.schema.names, batch.columns, strict=True):
            _check_values(values, f"{self._name}: column {column!r}")
            self._sizes[column] += _size(values)
            place = f"{self._name} rows {self._given + 1} to {self._given + self.count}: column {column!r}"
            _refuse_size(self._sizes[column], self.count, place)
            kind = self._schema.field(column).type
            arrays.append(values if values.type == kind or pa.types.is_dictionary(kind) else values.cast(kind))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, batch.schema.names))

    def take(self) -> pa.RecordBatch:
        """The next `rows` of them, or all where there are fewer."""
        table = pa.Table.from_batches(self._batches)
        rest = table.slice(self._rows).to_batches()
        self._batches.clear()
        (taken,) = table.slice(0, self._rows).combine_chunks().to_batches()
        self._batches += rest
        self._given += taken.num_rows
        self.count -= taken.num_rows
        self._sizes.clear()
        for batch in rest:
            self._sizes.update(dict(zip(batch.schema.names, map(_size, batch.columns), strict=True)))
        return taken


def _check_values(values: pa.Array, place: str) -> None:
    """Parquet promises neither that a text is UTF-8 nor that a place in a dictionary is one."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        raise ValueError(f"{place} holds a text that is not UTF-8 ({error}); write the texts as UTF-8") from error


def _refuse_size(total: int, rows: int, what: str) -> None:
    """Refuse a column that takes `total` bytes once the values of `rows` rows are taken out of Arrow.

    Args:
        what: how messages name rows and column, such as `m.parquet rows 1 to 8192: column 'video'`.
    Raises:
        ValueError: these are more than `MOST_TEXT`.
    """
    if total > MOST_TEXT:
        raise ValueError(
            f"{what} holds {total / 1e6:.0f} MB, and at most {MOST_TEXT / 1e6:.0f} MB are read of {rows} rows; "
            "shorten the values"
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _size(values: pa.Array) -> int:
    kind = values.type
    if pa.types.is_dictionary(kind):
        texts = values.dictionary
        if _is_text(texts.type):
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
