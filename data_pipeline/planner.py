"""Makes the plan of a dataset, or proves that the one already there is for the same work.

Memory stays bounded for any number of rows: rows are spooled to a local file once, ids are compared by hash, one
partition of them at a time.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.manifest import MANIFEST_SUFFIXES, Manifest, open_manifest
from data_pipeline.plan import (
    DIGEST_ROWS,
    PLAN_KEY,
    PLAN_SCHEMA,
    Plan,
    RowsDigest,
    Segment,
    automatic_unit_rows,
    read_plan,
    rechunked,
    settings_difference,
    write_parts,
)
from data_pipeline.rows import ROW_SCHEMA
from data_pipeline.shards_config import Duplicates, ShardsConfig
from data_pipeline.storage import Store, open_store

_PARTITIONS = 16
_LISTED = 20
"""Duplicate ids an error message lists before it only counts them."""


@dataclass(frozen=True)
class Planned:
    """A plan, where relative videos are, and whether this call made the plan."""

    plan: Plan
    base: str
    fresh: bool


def make_plan(config: ShardsConfig, encoder: str, store: Store) -> Planned:
    """Write the plan of `config.source` to the store, or check the one that is there against it.

    Args:
        encoder: version of the clip encoder; another one on the same output is refused.
        store: the output.
    Raises:
        ValueError: a wrong source row, duplicate ids, or an output that was planned from other settings, another
            encoder or another manifest, with the difference.
    """
    if config.run.scratch:
        Path(config.run.scratch).mkdir(parents=True, exist_ok=True)
    with _local_source(config) as (path, base):
        old = _existing(store)
        if old is not None:
            _refuse_other_settings(old, config, encoder, store)
            fingerprint = _file_sha256(path)
            if fingerprint and any(fingerprint == segment.file_sha256 for segment in old.segments):
                return Planned(old, base, fresh=False)
        with tempfile.TemporaryDirectory(prefix="vidtwin-plan-", dir=config.run.scratch or None) as folder:
            spool = _Spool(open_manifest(path), Path(folder))
            if old is not None:
                _refuse_other_manifest(old, spool, store)
                return Planned(old, base, fresh=False)
            segment = _segment(spool, config, _file_sha256(path))
            write_parts(store, segment, spool.planned_rows(config.duplicates))
            plan = Plan(encoder=encoder, settings=config.plan_settings(), segments=(segment,))
            if not store.put_if_absent(PLAN_KEY, plan.to_json()) and read_plan(store) != plan:
                raise ValueError(f"{store.uri()} was planned by another run meanwhile; run the same command again")
    return Planned(plan, base, fresh=True)


def _existing(store: Store) -> Plan | None:
    try:
        return read_plan(store)
    except FileNotFoundError:
        return None


def _segment(spool: _Spool, config: ShardsConfig, file_sha256: str) -> Segment:
    duplicates = spool.duplicates()
    if duplicates and config.duplicates is Duplicates.ERROR:
        listed = [
            f"{identity!r} in rows {', '.join(map(str, rows))}" for identity, rows in list(duplicates.items())[:_LISTED]
        ]
        more = f"\n  and {len(duplicates) - _LISTED} more" if len(duplicates) > _LISTED else ""
        raise ValueError(
            f"{spool.name}: {len(duplicates)} ids stand for more than one row; make them unique in the `id` column, or "
            f"pass duplicates=merge to keep the first row of each:\n  " + "\n  ".join(listed) + more
        )
    unit_rows = config.unit_rows or automatic_unit_rows(spool.rows)
    return Segment(
        kind="manifest",
        digest=spool.digest,
        file_sha256=file_sha256,
        rows=spool.rows,
        duplicates=sum(len(rows) - 1 for rows in duplicates.values()),
        first_row=1,
        unit_rows=unit_rows,
        first_unit=0,
        units=-(-spool.rows // unit_rows),
    )


def _refuse_other_settings(old: Plan, config: ShardsConfig, encoder: str, store: Store) -> None:
    difference = settings_difference(old.settings, config.plan_settings())
    if old.encoder != encoder:
        difference.append(f"clip encoder: was {old.encoder}, is {encoder}")
    if difference:
        raise ValueError(
            f"{store.uri()} was planned with other settings; use the old ones, or another output:\n  "
            + "\n  ".join(difference)
        )


def _refuse_other_manifest(old: Plan, spool: _Spool, store: Store) -> None:
    if any(spool.digest == segment.digest for segment in old.segments):
        return
    segment = old.segments[0]
    difference = [f"rows: were {segment.rows}, are {spool.rows}"] if segment.rows != spool.rows else []
    difference.append(_first_different_row(segment, spool, store))
    raise ValueError(
        f"{store.uri()} was planned from another manifest; use the old one, or another output:\n  "
        + "\n  ".join(difference)
    )


def _first_different_row(segment: Segment, spool: _Spool, store: Store) -> str:
    size = segment.part_units * segment.unit_rows
    for part, new in enumerate(rechunked(spool.batches(), size)):
        if part * segment.part_units >= segment.units:
            break
        old = pq.read_table(BytesIO(store.read(segment.part_key(part))))
        for was, now in zip(old.to_pylist(), new.to_pylist(), strict=False):
            for column in ROW_SCHEMA.names:
                if was[column] != now[column]:
                    return f"row {now['row']}, column {column}: was {was[column]!r}, is {now[column]!r}"
    return f"rows 1 to {min(segment.rows, spool.rows)} are the same"


class _Spool:
    """The normalised rows of one manifest on local disk, with their number, digest and duplicate ids."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.name = manifest.name
        self.rows = 0
        self._path = folder / "rows.arrow"
        self._hashes = [folder / f"ids-{number}" for number in range(_PARTITIONS)]
        self._found: dict[str, list[int]] | None = None
        digest = RowsDigest()
        files = [path.open("wb") for path in self._hashes]
        try:
            with pa.OSFile(str(self._path), "wb") as sink, pa.ipc.new_stream(sink, ROW_SCHEMA) as writer:
                for table in rechunked(manifest.batches, DIGEST_ROWS):
                    digest.add(table)
                    writer.write_table(table)
                    self.rows += table.num_rows
                    _partition(_hashes(table.column("id")), files)
        finally:
            for file in files:
                file.close()
        self.digest = digest.hexdigest()

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(str(self._path)) as file, pa.ipc.open_stream(file) as reader:
            yield from reader

    def duplicates(self) -> dict[str, list[int]]:
        """Id -> its row numbers, for every id that has several."""
        if self._found is None:
            suspects = np.concatenate([_repeated(np.fromfile(path, np.int64)) for path in self._hashes])
            self._found = {}
            if len(suspects):
                for batch in self.batches():
                    same = np.flatnonzero(np.isin(_hashes(batch.column("id")), suspects))
                    chosen = batch.take(pa.array(same))
                    for row, identity in zip(chosen["row"].to_pylist(), chosen["id"].to_pylist(), strict=True):
                        self._found.setdefault(identity, []).append(row)
                self._found = {identity: rows for identity, rows in self._found.items() if len(rows) > 1}
        return self._found

    def planned_rows(self, duplicates: Duplicates) -> Iterator[pa.RecordBatch]:
        """The rows with the plan's own columns."""
        first = {row: rows[0] for rows in self.duplicates().values() for row in rows[1:]}
        assert not first or duplicates is Duplicates.MERGE
        for batch in self.batches():
            merged = [first.get(row) for row in batch["row"].to_pylist()] if first else [None] * batch.num_rows
            columns = [*batch.columns, pa.array(merged, pa.int64()), pa.array([""] * batch.num_rows, pa.string())]
            yield pa.RecordBatch.from_arrays(columns, schema=PLAN_SCHEMA)


def _hashes(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Python's own string hash: salted for each process, which is as long as it is needed."""
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))


def _partition(hashes: np.ndarray, files: list[IO[bytes]]) -> None:
    part = hashes % _PARTITIONS
    for number, file in enumerate(files):
        hashes[part == number].tofile(file)


def _repeated(values: np.ndarray) -> np.ndarray:
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])


@contextmanager
def _local_source(config: ShardsConfig) -> Iterator[tuple[Path, str]]:
    """A local path of the source, and the base of its relative videos. A manifest on S3 is copied for the moment."""
    if "://" not in config.source:
        path = Path(config.source).expanduser()
        yield path, str(path.absolute() if path.is_dir() else path.absolute().parent)
        return
    folder, _, name = config.source.rpartition("/")
    if not name.lower().endswith(MANIFEST_SUFFIXES):
        raise ValueError(
            f"source {config.source!r} must name a manifest ({', '.join(MANIFEST_SUFFIXES)}); a remote folder is not "
            "listed: write its keys to a manifest, which also holds their captions"
        )
    store = open_store(folder, attempts=config.sources.attempts, timeout_s=config.sources.timeout_s)
    with tempfile.TemporaryDirectory(prefix="vidtwin-manifest-", dir=config.run.scratch or None) as temporary:
        path = Path(temporary) / name
        store.read_to_file(name, path)
        yield path, folder


def _file_sha256(path: Path) -> str:
    if path.is_dir() or not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
