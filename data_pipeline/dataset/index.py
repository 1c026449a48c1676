"""The sample index says where every clip lies, so that a clip is read with one ranged read and without a scan.

Every unit has an index of its own. The global `index.arrow` consists of the units' indexes in the order of the units;
its `shard` numbers the shards of the entire dataset. Both are uncompressed Arrow IPC files, which a reader can map into
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.store.files import file_sha256

INDEX_KEY = "index.arrow"
_BATCH_ROWS = 65_536

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # position in the unit record's, or dataset.json's, list of shards
        ("offset", pa.int64()),  # of the sample's first tar header
        ("size", pa.int32()),  # all members with headers and padding
        ("video_offset", pa.int64()),  # the payload's own bytes: a clip's mp4, or a latent sample's safetensors
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

TEXT_INDEX_SCHEMA = pa.schema(
    [
        # A row is one caption. `key` is its SHA-256, `row` the number of its row in the plan.
        *(INDEX_SCHEMA.field(name) for name in ("key", "shard", "offset", "size", "video_offset", "video_size")),
        *(INDEX_SCHEMA.field(name) for name in ("split", "crc32", "row")),
        ("tokens", pa.int32()),  # that are stored
        ("caption_tokens", pa.int32()),  # of the whole caption; more than `tokens` where it was cut
    ]
)

LATENT_INDEX_SCHEMA = pa.schema(
    [
        # A row is one window of a clip: `frames`, `height` and `width` are the window's, `source` is the key of the
        # clip, `clip` the number of the sample among those of the clip, `start` and `end` the window's times in the
        # source of the clip. `phash` is the clip's.
        *INDEX_SCHEMA,
        ("first_frame", pa.int32()),  # the window's first stored frame of the clip
        ("mirrored", pa.bool_()),  # left and right exchanged
        ("clip_crc32", pa.uint32()),  # `crc32` of the clip's sample, as its own index has it
    ]
)


@dataclass(kw_only=True, slots=True)
class SampleRow:
    """What the rows of every index have: the place of a sample. INDEX_SCHEMA says what the fields mean."""

    key: str
    shard: int
    offset: int
    size: int
    video_offset: int
    video_size: int
    split: str
    crc32: int
    row: int


@dataclass(kw_only=True, slots=True)
class IndexRow(SampleRow):
    """One clip, which is one row of an index. The fields are the columns of INDEX_SCHEMA, which says what they mean."""

    frames: int
    height: int
    width: int
    source: str
    label: str
    clip: int
    start: float
    end: float
    phash: int


@dataclass(kw_only=True, slots=True)
class LatentRow(IndexRow):
    """One latent sample. The fields are the columns of LATENT_INDEX_SCHEMA, which says what they mean."""

    first_frame: int
    mirrored: bool
    clip_crc32: int


@dataclass(kw_only=True, slots=True)
class TextRow(SampleRow):
    """One caption. The fields are the columns of TEXT_INDEX_SCHEMA, which says what they mean."""

    tokens: int
    caption_tokens: int


def index_rows(index: pa.Table, row: type[SampleRow] = IndexRow) -> list[SampleRow]:
    """The samples of a unit's index, in order.

    Args:
        row: what one of them is, by the dataset's kind.
    """
    return [row(**values) for values in index.to_pylist()]


def latent_rows(index: pa.Table) -> list[LatentRow]:
    """The samples of the index of a unit of latents, in order."""
    return [LatentRow(**values) for values in index.to_pylist()]


def unit_index(samples: Sequence[SampleRow], schema: pa.Schema = INDEX_SCHEMA) -> bytes:
    """The bytes of one unit's index file. The same samples give the same bytes.

    Args:
        schema: columns, as the dataset's kind has them.
    """
    sink = BytesIO()
    table = pa.Table.from_pylist(
        [{name: getattr(sample, name) for name in schema.names} for sample in samples], schema=schema
    )
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read_unit_index(data: bytes, schema: pa.Schema = INDEX_SCHEMA) -> pa.Table:
    """The table of one unit's index file. Raises: ValueError when it is damaged or has other columns."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"unit index is damaged: {error}") from error
    if table.schema.names != schema.names:
        raise ValueError(f"unit index has columns {table.schema.names}, expected {schema.names}")
    return table


@dataclass(frozen=True)
class IndexFile:
    """The index file that `merge` wrote."""

    samples: int
    bytes: int
    sha256: str


def merge(units: Iterable[tuple[pa.Table, int]], path: Path, schema: pa.Schema = INDEX_SCHEMA) -> IndexFile:
    """Write the global index. Memory holds one batch of it.

    Args:
        units: the table of each unit, in order, and the number of shards of all units before it.
        path: local file to write.
        schema: columns of the tables.
    """
    position = schema.get_field_index("shard")
    batch: list[pa.Table] = []
    rows = samples = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table, shards_before in units:
            shard = pc.add(table.column("shard"), pa.scalar(shards_before, pa.int32()))
            batch.append(table.set_column(position, schema.field("shard"), shard))
            rows += table.num_rows
            samples += table.num_rows
            if rows >= _BATCH_ROWS:
                writer.write_table(pa.concat_tables(batch).combine_chunks())
                batch, rows = [], 0
        if batch:
            writer.write_table(pa.concat_tables(batch).combine_chunks())
    return IndexFile(samples, path.stat().st_size, file_sha256(path))
