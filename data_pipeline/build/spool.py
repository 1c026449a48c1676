"""Keeps the rows of a manifest on local disk while they are planned, counts them and finds repeated ids.

Memory stays bounded for any number of rows: the hashes of the ids are compared, one partition of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.build.hashes import HashFiles, among, repeated, text_hashes
from data_pipeline.build.video_runs import VideoRuns
from data_pipeline.dataset.plan_parts import PLAN_SCHEMA
from data_pipeline.dataset.row_tables import RowsDigest, digest_tables
from data_pipeline.source.manifest import Manifest
from data_pipeline.source.rows import PROBLEM, ROW_SCHEMA


class Spool:
    """The normalised rows of one manifest on local disk, with their number, digest, duplicate ids and runs of videos.

    Args:
        folder: an empty local one, which the caller removes.
        base: folder or address that relative videos start from.
    """

    def __init__(self, manifest: Manifest, folder: Path, base: str) -> None:
        self.name = manifest.name
        self.rows = 0
        self._path = folder / "rows.arrow"
        self._ids = HashFiles(folder, "ids")
        self.runs = VideoRuns(folder, base)
        self._duplicates: dict[str, list[int]] | None = None
        digest = RowsDigest()
        with (
            closing(self._ids),
            closing(self.runs),
            pa.OSFile(str(self._path), "wb") as sink,
            pa.ipc.new_stream(sink, ROW_SCHEMA) as writer,
        ):
            for table in digest_tables(manifest.batches):
                digest.add(table)
                writer.write_table(table)
                self.rows += table.num_rows
                self._ids.add(text_hashes(table.column("id")))
                self.runs.add(table)
        self.digest = digest.hexdigest()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of ROW_SCHEMA."""
        with pa.OSFile(str(self._path)) as file, pa.ipc.open_stream(file) as reader:
            yield from reader

    def duplicates(self) -> dict[str, list[int]]:
        """Id -> its row numbers, for every id that has several."""
        if self._duplicates is None:
            suspects = np.sort(np.concatenate([repeated(hashes) for hashes in self._ids.partitions()]))
            self._duplicates = {}
            if len(suspects):
                for batch in self.batches():
                    same = np.flatnonzero(among(text_hashes(batch.column("id")), suspects))
                    chosen = batch.take(pa.array(same))
                    for row, identity in zip(chosen["row"].to_pylist(), chosen["id"].to_pylist(), strict=True):
                        self._duplicates.setdefault(identity, []).append(row)
                self._duplicates = {identity: rows for identity, rows in self._duplicates.items() if len(rows) > 1}
        return self._duplicates

    def planned_rows(self, elsewhere: dict[str, int], before: int) -> Iterator[pa.RecordBatch]:
        """The rows with the plan's own columns.

        Args:
            elsewhere: id -> row of the plan, for ids that earlier manifests have.
            before: rows of the plan before this manifest.
        """
        first = {row: rows[0] + before for rows in self.duplicates().values() for row in rows[1:]}
        for batch in self.batches():
            rows, ids = batch["row"].to_pylist(), batch["id"].to_pylist()
            merged: list[int | None] = [None] * batch.num_rows
            if first or elsewhere:
                merged = [elsewhere.get(identity, first.get(row)) for row, identity in zip(rows, ids, strict=True)]
            numbers = pa.array([row + before for row in rows], pa.int64())
            columns = [pa.array(merged, pa.int64()), pa.array([""] * batch.num_rows, pa.string())]
            rest = batch.select(ROW_SCHEMA.names[1:-1]).columns
            yield pa.RecordBatch.from_arrays(
                [numbers, *rest, *columns, batch.column(PROBLEM)], schema=PLAN_SCHEMA.append(ROW_SCHEMA.field(PROBLEM))
            )
