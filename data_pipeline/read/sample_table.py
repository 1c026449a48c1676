"""The samples of a dataset and the place of each in the shards, from the memory-mapped index.arrow.

The index of ten million samples stays on disk; memory holds only the parts of it that were asked for last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.dataset.index_check import check_rows, require_columns


@dataclass(slots=True)
class Sample:
    """One row of index.arrow."""

    row: int
    key: str
    shard: int
    offset: int
    size: int
    video_offset: int
    video_size: int
    frames: int
    height: int
    width: int
    label: str
    crc32: int = 0  # of the `size` bytes at `offset`; readers of clips do not ask for it


class SampleTable:
    """Random access to the rows of index.arrow.

    Args:
        path: local index.arrow.
        shards: number of shards in dataset.json.
        checksums: whether `Sample.crc32` is wanted.
    Raises:
        ValueError: the index is damaged, or names shards or bytes that cannot be.
        OSError: it is missing, or is no regular file.
    """

    def __init__(self, path: Path, shards: int, *, checksums: bool = False) -> None:
        self.path = path
        self.shards = shards
        check_rows(path, shards)
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        self._starts = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._part = lru_cache(maxsize=64)(self._columns_of)
        self._columns = _COLUMNS if checksums else _COLUMNS[:-1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Sample:
        return self.samples([row])[0]

    def samples(self, rows: Sequence[int] | npt.NDArray[Any]) -> list[Sample]:
        """Some rows, in the order that is given. For many rows this is much faster than one after the other."""
        wanted = np.asarray(rows, dtype=np.int64)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[int, Sample] = {}
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            inside = wanted[places] - self._starts[number]
            arrow = pa.array(inside)
            columns = [_values(column, inside, arrow) for column in self._part(number)]
            for place, row, *values in zip(places.tolist(), wanted[places].tolist(), *columns, strict=True):
                found[place] = Sample(row, *values)
        return [found[place] for place in range(len(wanted))]

    def _columns_of(self, number: int) -> list[pa.Array | npt.NDArray[Any]]:
        """The columns of `Sample` in a record batch: numbers as NumPy arrays of the mapped file, texts as Arrow's."""
        batch = self._reader.get_batch(number)
        require_columns(batch.schema.names, self._columns, str(self.path))
        columns = [batch.column(name) for name in self._columns]
        return [c if pa.types.is_string(c.type) else c.to_numpy(zero_copy_only=False) for c in columns]

    def columns(self, *names: str) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
        """(first row, the named columns) of one record batch after another. Raises: ValueError where one is missing."""
        require_columns(self._reader.schema.names, names, str(self.path))
        for number, start in enumerate(self._starts[:-1]):
            batch = self._reader.get_batch(number)
            yield start, [batch.column(name).to_numpy(zero_copy_only=False) for name in names]

    def of_split(self, split: str, *names: str) -> Iterator[tuple[int, npt.NDArray[Any], list[npt.NDArray[Any]]]]:
        """(first row, which rows are of a split, the named columns) of one record batch after another.

        Raises: ValueError where a column is missing.
        """
        require_columns(self._reader.schema.names, ("split", *names), str(self.path))
        for number, start in enumerate(self._starts[:-1]):
            batch = self._reader.get_batch(number)
            # Arrow compares, because with strings of Python this would take minutes for ten million rows.
            mask = pc.equal(batch.column("split"), split).to_numpy(zero_copy_only=False)
            yield start, mask, [batch.column(name).to_numpy(zero_copy_only=False) for name in names]


def _values(column: pa.Array | npt.NDArray[Any], places: npt.NDArray[np.int64], arrow: pa.Array) -> list[Any]:
    """The values of a column at some places, which are also given as an array of Arrow."""
    if isinstance(column, np.ndarray):
        return list(column[places].tolist())
    return list(column.take(arrow).to_pylist())


_COLUMNS = tuple(name for name in Sample.__slots__ if name != "row")
