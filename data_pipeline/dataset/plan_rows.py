"""The rows of a plan, as they lie in its part files `plan/<digest of the rows>-<part>.parquet`.

Which part file has the rows of a unit, the unit's segment says (`plan.Segment`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.dataset.plan import Dataset, Segment
from data_pipeline.dataset.plan_parts import PART_SCHEMAS, PLAN_SCHEMA, read_part
from data_pipeline.dataset.row_fates import RETRIED_ERROR
from data_pipeline.dataset.row_tables import has_problems, rechunked
from data_pipeline.store.base import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One source row of a plan, with the columns of PLAN_SCHEMA."""

    row: int  # 1-based over the entire plan
    id: str
    video: str  # as the manifest has it: relative path, absolute path or URL
    caption: str | None
    start: float | None  # seconds; None: from the beginning
    end: float | None  # seconds; None: to the end
    label: str  # "": none
    split: str  # "": by hash
    extra: str  # the manifest's other columns as one JSON object; "" when there are none
    duplicate_of: int | None = None  # with duplicates=merge: the earlier row with this id
    retried_error: str = ""  # in a retry: the error that the row had before
    problem: str = ""  # why the row as the manifest has it is of no use; "": it is usable


class PlanRows:
    """Reads the rows of single units. The last `keep` part files stay in memory, because units are read in order."""

    def __init__(self, dataset: Dataset, keep: int = 2) -> None:
        self._store, self._plan, self._keep = dataset.store, dataset.plan, keep
        self._parts: OrderedDict[str, pa.Table] = OrderedDict()

    def unit(self, unit: int) -> list[PlanRow]:
        """The rows of one unit in order."""
        table = self.table(unit)
        names = ["retried_error" if name == RETRIED_ERROR else name for name in table.column_names]
        return [PlanRow(**row) for row in table.rename_columns(names).to_pylist()]

    def table(self, unit: int) -> pa.Table:
        """The rows of one unit as an Arrow table of PLAN_SCHEMA. Raises: ValueError for a part of other columns."""
        segment = self._plan.segment_of(unit)
        if not segment.rows:
            return PLAN_SCHEMA.empty_table()
        part = segment.part_of(unit)
        key = segment.part_key(part)
        if key not in self._parts:
            self._parts[key] = read_part(self._store, key)
            while len(self._parts) > self._keep:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        begin, end = segment.bounds(unit)
        return self._parts[key].slice(begin - segment.part_starts[part], end - begin)


def write_parts(store: Store, segment: Segment, batches: Iterator[pa.RecordBatch]) -> None:
    """Write the part files of one segment. Same rows, same bytes."""
    for part, table in enumerate(rechunked(batches, segment.part_lengths)):
        buffer = BytesIO()
        schema = PART_SCHEMAS[has_problems(table)]
        pq.write_table(table.select(schema.names).cast(schema), buffer, compression="zstd", store_schema=False)
        store.write(segment.part_key(part), buffer.getvalue())
