"""The part files of a plan, read as files of others: some kilobytes can stand for more than a memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.dataset.row_fates import RETRIED_ERROR
from data_pipeline.source.rows import PROBLEM, ROW_SCHEMA
from data_pipeline.source.sizes import parquet_batches
from data_pipeline.store.base import Store

PLAN_SCHEMA = pa.schema(
    [
        *(field for field in ROW_SCHEMA if field.name != PROBLEM),
        pa.field("duplicate_of", pa.int64()),  # with duplicates=merge: the earlier row with this id
        pa.field(RETRIED_ERROR, pa.string(), nullable=False),  # in a retry: the error the row had before; else ""
    ]
)
"""The columns of a part file; one that holds rows with a `problem` has that column as its last."""
PART_SCHEMAS = (PLAN_SCHEMA, PLAN_SCHEMA.append(ROW_SCHEMA.field(PROBLEM)))
"""Of the part files: where a row is of no use, they say why."""
_READ_TOGETHER = 8_192
"""Rows that are measured together, as those of a manifest are."""


def read_part(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a part file, with the columns of one of `PART_SCHEMAS`, or some of them.

    Raises:
        ValueError: it is no part file, or its rows would take too much memory.
        OSError: the store fails.
    """
    named = store.uri(key)
    data = BytesIO(store.read(key))
    try:
        schema = pq.read_schema(data).remove_metadata()
        if schema not in PART_SCHEMAS:
            raise ValueError(
                f"{named} has not the columns of a plan but {', '.join(schema.names)[:200]}; restore it from a copy"
            )
        batches = list(parquet_batches(data, named, _READ_TOGETHER, columns))
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{named} cannot be read as Parquet: {said}; restore it from a copy") from error
    kept = pa.schema([schema.field(name) for name in (schema.names if columns is None else columns)])
    return pa.Table.from_batches(batches).select(kept.names).cast(kept) if batches else kept.empty_table()
