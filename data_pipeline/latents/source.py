"""The dataset that another one is made of: its description, and its index, read in pieces of bounded size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.index import INDEX_KEY
from data_pipeline.dataset.index_check import require_columns
from data_pipeline.dataset.index_file import checked_index
from data_pipeline.dataset.kind import CLIPS, Kind
from data_pipeline.store.base import Store


class ClipsSource:
    """A complete dataset of clips. `opened_source` makes one.

    Args:
        store: where it lies.
        description: its dataset.json.
        index: local file with its index.
    """

    def __init__(self, store: Store, description: DatasetFile, index: Path) -> None:
        self.store, self.description, self._index = store, description, index

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Position of a shard in dataset.json and the index rows of its clips, for every shard that has clips.

        The shards come in order, and so do the clips of each. Memory holds the rows of one piece of the index and of
        one shard.

        Raises: ValueError where the index lacks a column of its kind.
        """
        with pa.memory_map(str(self._index)) as file:
            reader = self._reader(file, self.description.kind.schema.names)
            held: list[pa.Table] = []
            current = -1
            for number in range(reader.num_record_batches):
                batch = pa.Table.from_batches([reader.get_batch(number)])
                for shard, piece in _runs(batch):
                    if shard != current and held:
                        yield current, pa.concat_tables(held)
                        held = []
                    current = shard
                    held.append(piece)
            if held:
                yield current, pa.concat_tables(held)

    def row(self, position: int) -> dict[str, Any]:
        """The index row of one clip, by its position in the whole index."""
        with pa.memory_map(str(self._index)) as file:
            reader = pa.ipc.open_file(file)
            number = bisect_right(self._starts, position) - 1
            (found,) = reader.get_batch(number).slice(position - self._starts[number], 1).to_pylist()
            return dict(found)

    @cached_property
    def _starts(self) -> list[int]:
        """Position of the first clip of each piece of the index."""
        with pa.memory_map(str(self._index)) as file:
            reader = pa.ipc.open_file(file)
            sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
            return [0, *accumulate(sizes)]

    def columns(self, *names: str) -> Iterator[pa.Table]:
        """Some columns of one piece of the index after another. Raises: ValueError where the index lacks one."""
        with pa.memory_map(str(self._index)) as file:
            reader = self._reader(file, names)
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)]).select(names)

    def _reader(self, file: pa.MemoryMappedFile, needed: Sequence[str]) -> pa.RecordBatchFileReader:
        reader = pa.ipc.open_file(file)
        require_columns(reader.schema.names, needed, self.store.uri(INDEX_KEY))
        return reader


def _runs(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Pieces of consecutive rows of one shard."""
    shards = table.column("shard").to_numpy()
    if not len(shards):
        return
    changes = (shards[1:] != shards[:-1]).nonzero()[0] + 1
    bounds = [0, *changes.tolist(), len(shards)]
    for begin, end in pairwise(bounds):
        yield int(shards[begin]), table.slice(begin, end - begin)


@contextmanager
def opened_source(
    store: Store, scratch: str | None = None, *, kind: Kind = CLIPS, named: str = "--shards "
) -> Iterator[ClipsSource]:
    """A dataset of clips, or of another kind, for the time of the block.

    Args:
        scratch: folder for temporary files; None takes the system's.
        kind: what the dataset must consist of.
        named: the option that names the store, for messages.
    Raises:
        ValueError: there is no complete dataset of the kind, or its index is not the one of its dataset.json.
    """
    description = DatasetFile.load(store, kind, named=named)
    with checked_index(store, description, scratch) as path:
        yield ClipsSource(store, description, path)
