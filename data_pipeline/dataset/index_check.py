"""An index from outside is checked once, before anybody reads it: its buffers, its texts and its numbers.

Arrow believes the offsets in a file, and where they are wrong it reads memory that is not the file's. The digest in
dataset.json does not help, because a stranger who makes such a file writes its digest as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.dataset.index import LATENT_INDEX_SCHEMA, TEXT_INDEX_SCHEMA
from data_pipeline.outside.regular import check_regular

_MOST = {
    "offset": 2**62,
    "size": 2**62,
    "crc32": 2**32 - 1,
    "video_offset": 2**62,
    "video_size": 2**62,
    "frames": 2**31 - 1,
    "height": 2**16,
    "width": 2**16,
}
"""Largest values of columns of whole numbers that are not negative. Not every index has all of them."""
REMEDY = "launch/verify_shards.py on the dataset says what is wrong, and how it is mended"
"""The remedy that messages give for an index that a reader cannot use."""
_EVERY = ("key", "shard", "offset", "size")
"""The columns that every index has: which bytes of which shard a sample is."""
_KNOWN = {field.name: field.type for schema in (LATENT_INDEX_SCHEMA, TEXT_INDEX_SCHEMA) for field in schema}
"""The type of every column that readers ask for, in whatever kind of dataset."""
_KINDS = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean)
"""A column has values of the same one of these kinds as its known type; the number of bits may be another one."""


def check_rows(path: Path, shards: int, named: str = "") -> None:
    """Refuse an index whose buffers, texts or numbers lie. It is read once, one batch after another.

    Args:
        path: local index.arrow.
        shards: number of shards in dataset.json.
        named: what messages call the file; empty: its path.
    Raises:
        ValueError: naming the row or the column.
        OSError: it is missing, or is no regular file.
    """
    check_regular(path)
    try:
        with pa.memory_map(str(path)) as file:
            _check_batches(pa.ipc.open_file(file), shards)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{named or path} is not a readable Arrow index ({error}); {REMEDY}") from error


def _check_batches(reader: pa.RecordBatchFileReader, shards: int) -> None:
    if missing := [name for name in _EVERY if name not in reader.schema.names]:
        raise ValueError(f"it has no column {', '.join(missing)}")
    if twice := [name for name in reader.schema.names if reader.schema.names.count(name) > 1]:
        raise ValueError(f"it has two columns {twice[0]}")
    for field in reader.schema:
        known = _KNOWN.get(field.name)
        if known is not None and any(is_kind(known) and not is_kind(field.type) for is_kind in _KINDS):
            raise ValueError(f"its column {field.name} is {field.type}")
    first = 0
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)
        for name in sorted(_KNOWN.keys() & batch.schema.names):
            _check_column(batch.column(name), name, shards - 1 if name == "shard" else _MOST.get(name), first)
        _check_names(batch.column("key"), first)
        first += batch.num_rows


def _check_column(column: pa.Array, name: str, most: int | None, first: int) -> None:
    """Refuse nulls, and numbers below 0 or above `most`.

    Args:
        first: number of the column's first row, from 0.
    """
    if column.null_count:
        raise ValueError(f"row {first + _first_of(column.is_null())} has no {name}")
    if most is None or not len(column):
        return
    wrong = pc.or_(pc.less(column, 0), pc.greater(column.cast(pa.int64()), most))
    if pc.any(wrong).as_py():
        place = _first_of(wrong)
        raise ValueError(f"row {first + place} has {name} {column[place].as_py()}, and 0 to {most} is possible")


def require_columns(names: Sequence[str], needed: Iterable[str], named: str) -> None:
    """Refuse an index without a column that a reader asks for.

    Args:
        names: of the columns that it has.
        needed: the columns that are asked for.
        named: what messages call the file.
    Raises:
        ValueError: naming the columns.
    """
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{named} has no column {', '.join(missing)}; {REMEDY}")


def _check_names(keys: pa.Array, first: int) -> None:
    """Refuse a key with a slash: keys become names of files, and such a file would lie in another folder.

    Args:
        first: number of the first row, from 0.
    """
    paths = pc.match_substring(keys, "/")
    if pc.any(paths).as_py():
        place = _first_of(paths)
        raise ValueError(f"row {first + place} has the key {keys[place].as_py()!r}, and no key has a slash")


def _first_of(mask: pa.Array) -> int:
    return int(pc.index(mask, pa.scalar(True)).as_py())
