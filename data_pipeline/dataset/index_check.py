"""An index from outside is checked once, before anybody reads it: its buffers, its texts and its numbers.

Arrow believes the offsets in a file, and where they are wrong it reads memory that is not the file's. The digest in
dataset.json does not help, because a stranger who makes such a file writes its digest as well.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

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
        text = pa.types.is_string(field.type)
        if (field.name == "key" and not text) or (field.name in _MOST and not pa.types.is_integer(field.type)):
            raise ValueError(f"its column {field.name} is {field.type}")
    first = 0
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)
        for name, most in {"key": None, "shard": shards - 1, **_MOST}.items():
            if name in batch.schema.names:
                _check_column(batch.column(name), name, most, first)
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
