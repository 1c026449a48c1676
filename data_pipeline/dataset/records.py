"""The records that lie on the store: what a commit record says of a unit's shards and index, and of its source rows.

`to_json` gives the JSON value that is stored; `from_json` reads it back and refuses missing, unknown and wrongly typed
fields with a `FieldError`. The readers in `units.py` and `description.py` add the file's name and the remedy to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipeline.dataset.fields import Fields, canonical_json, read_object
from data_pipeline.dataset.latent_records import UnitLatents
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.text_records import UnitTexts
from data_pipeline.store.base import checked_key

FORMAT = 1
"""Format number of commit records."""


def _inside(fields: Fields) -> str:
    """The name of a file of the dataset. Raises: FieldError for one outside of it."""
    name = fields.text("name")
    try:
        return checked_key(name)
    except ValueError:
        raise fields.wrong("name", "a path inside the dataset", name) from None


def _size(fields: Fields) -> int:
    """Bytes of a file. Raises: FieldError for a number that no file has."""
    size = fields.integer("bytes")
    if not 0 <= size < 2**63:
        raise fields.wrong("bytes", "the bytes of a file", size)
    return size


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard of a unit or of a dataset."""

    name: str  # key on the store
    bytes: int
    sha256: str  # hexadecimal
    samples: int
    splits: dict[str, int]  # split -> samples, for the splits that occur

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "samples": self.samples,
            "splits": dict(sorted(self.splits.items())),
        }

    @staticmethod
    def from_json(fields: Fields) -> ShardEntry:
        """Raises: FieldError for a missing or wrongly typed field."""
        return ShardEntry(
            name=_inside(fields),
            bytes=_size(fields),
            sha256=fields.text("sha256"),
            samples=fields.integer("samples"),
            splits=fields.counts("splits"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexEntry:
    """The index file of a unit or of a dataset."""

    name: str  # key on the store
    bytes: int
    sha256: str  # hexadecimal

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}

    @staticmethod
    def from_json(fields: Fields) -> IndexEntry:
        """Raises: FieldError for a missing or wrongly typed field."""
        return IndexEntry(name=_inside(fields), bytes=_size(fields), sha256=fields.text("sha256"))


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """The content of `units/<number>.json`. A unit exists when its commit record does."""

    unit: int
    inputs: str  # digest of all that decides the unit's bytes, see `Plan.inputs`
    encoder: str  # version of everything that decides the bytes of a clip
    shards: tuple[ShardEntry, ...]
    index: IndexEntry
    rows: tuple[RowFate, ...]  # in the plan's order
    latents: UnitLatents | None = None  # of a unit of latents
    texts: UnitTexts | None = None  # of a unit of texts

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "unit": self.unit,
            "inputs": self.inputs,
            "encoder": self.encoder,
            "shards": [shard.to_json() for shard in self.shards],
            "index": self.index.to_json(),
            "rows": [row.to_json() for row in self.rows],
        }
        if self.latents is not None:
            record["latents"] = self.latents.to_json()
        if self.texts is not None:
            record["texts"] = self.texts.to_json()
        return record

    @staticmethod
    def from_json(fields: Fields) -> CommitRecord:
        """Raises: FieldError for a missing or wrongly typed field."""
        fields.require_format(FORMAT)
        return CommitRecord(
            unit=fields.integer("unit"),
            inputs=fields.text("inputs"),
            encoder=fields.text("encoder"),
            shards=fields.records("shards", ShardEntry.from_json),
            index=fields.record("index", IndexEntry.from_json),
            rows=fields.records("rows", RowFate.from_json),
            latents=fields.record("latents", UnitLatents.from_json) if "latents" in fields else None,
            texts=fields.record("texts", UnitTexts.from_json) if "texts" in fields else None,
        )

    def to_bytes(self) -> bytes:
        """The bytes of the stored file. The same record gives the same bytes on every machine."""
        return canonical_json(self.to_json()) + b"\n"

    @staticmethod
    def from_bytes(data: bytes) -> CommitRecord:
        """Raises: ValueError when the bytes are no JSON; FieldError for a missing, unknown or wrongly typed field."""
        return read_object(data, CommitRecord.from_json)

    def files(self) -> dict[str, str]:
        """Key -> SHA-256 of the files that the record vouches for."""
        return {shard.name: shard.sha256 for shard in self.shards} | {self.index.name: self.index.sha256}
