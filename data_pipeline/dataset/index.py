"""The sample index: where every clip lies, so that reading one costs one ranged read and no scan.

A unit's index is written with the unit; the global `index.arrow` is those, one after the other in unit order, with
`shard` counted on. Both are uncompressed Arrow IPC files, so a reader can map them into memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.store.files import file_sha256

INDEX_KEY = "index.arrow"
_BATCH_ROWS = 65_536

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # position in the unit record's, or dataset.json's, list of shards
        ("offset", pa.int64()),  # of the sample's first tar header
        ("size", pa.int32()),  # all members with headers and padding
        ("video_offset", pa.int64()),  # the mp4's own bytes
        ("video_size", pa.int32()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("split", pa.string()),  # train, val, test
        ("source", pa.string()),  # id of the source row
        ("label", pa.string()),  # "": none
        ("crc32", pa.uint32()),  # of the `size` bytes at `offset`
        ("row", pa.int64()),  # number of the source row, 1-based
        ("clip", pa.int32()),  # number of the clip within its row
        ("start", pa.float64()),  # seconds in the source
        ("end", pa.float64()),
        ("phash", pa.uint64()),  # near-duplicates have a small Hamming distance
    ]
)


def unit_index(samples: list[dict[str, Any]]) -> bytes:
    """The index file of one unit. Same samples, same bytes."""
    sink = BytesIO()
    table = pa.Table.from_pylist(samples, schema=INDEX_SCHEMA)
    with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read_unit_index(data: bytes) -> pa.Table:
    """The table of one unit's index file. Raises: ValueError when it is damaged."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"unit index is damaged: {error}") from error
    if table.schema.names != INDEX_SCHEMA.names:
        raise ValueError(f"unit index has columns {table.schema.names}, expected {INDEX_SCHEMA.names}")
    return table


@dataclass(frozen=True)
class IndexFile:
    """What `merge` wrote."""

    samples: int
    bytes: int
    sha256: str


def merge(units: Iterable[tuple[pa.Table, int]], path: Path) -> IndexFile:
    """Write the global index from unit indexes in order, in memory for one batch.

    Args:
        units: each unit's table and how many shards the units before it have.
        path: local file to write.
    """
    position = INDEX_SCHEMA.get_field_index("shard")
    held: list[pa.Table] = []
    rows = samples = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        for table, shards_before in units:
            shard = pa.compute.add(table.column("shard"), pa.scalar(shards_before, pa.int32()))
            held.append(table.set_column(position, INDEX_SCHEMA.field("shard"), shard))
            rows += table.num_rows
            samples += table.num_rows
            if rows >= _BATCH_ROWS:
                writer.write_table(pa.concat_tables(held).combine_chunks())
                held, rows = [], 0
        if held:
            writer.write_table(pa.concat_tables(held).combine_chunks())
    return IndexFile(samples, path.stat().st_size, file_sha256(path))
