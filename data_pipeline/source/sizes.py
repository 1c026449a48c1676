"""Bounds of what a manifest may hold, because a file of some kilobytes can stand for more than a memory holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import IO, AnyStr

import pyarrow as pa
import pyarrow.compute as pc

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
