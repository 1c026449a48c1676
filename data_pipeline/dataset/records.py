"""The records that lie on the store: what a commit record says of a unit's shards, index and source rows.

`to_json` gives the JSON value that is stored; `from_json` reads it back and refuses missing, unknown and wrongly typed
fields with a `FieldError`. The readers in `units.py` and `description.py` add the file's name and the remedy to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from data_pipeline.dataset.fields import Fields, Measured, Number, canonical_json, read_object
from data_pipeline.dataset.latent_records import UnitLatents
from data_pipeline.dataset.text_records import UnitTexts
from data_pipeline.outside.redaction import redacted
from data_pipeline.store.base import checked_key

FORMAT = 1
"""Format number of commit records."""

COMMITTED, REJECTED, QUARANTINED = "committed", "rejected", "quarantined"
RETRIED_ERROR = "retry_of"
"""Field of `RowFate.retried_error` in a stored record, and column of `PlanRow.retried_error` in the stored rows."""
TAKEN_DOWN = "taken_down"
"""Reason of a row whose source was removed on demand."""
WRONG_ROW = "wrong_row"
"""Reason of a row that is wrong as the manifest has it, with `rows=record`."""
NEAR_DUPLICATE = "near_duplicate"
"""Reason of a clip that shows what a clip of another row shows, and of a row without any other clip."""


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
class RejectedStretch:
    """A stretch of a source row that became no clip, and the reason."""

    clip: int | None  # number among the row's candidates; None stands for the entire row
    start: Number  # seconds in the source
    end: Number
    reason: str
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {
            "clip": self.clip,
            "start": self.start,
            "end": self.end,
            "reason": self.reason,
            "measured": self.measured,
        }

    @staticmethod
    def from_json(fields: Fields) -> RejectedStretch:
        """Raises: FieldError for a missing or wrongly typed field."""
        return RejectedStretch(
            clip=fields.optional_integer("clip"),
            start=fields.number("start"),
            end=fields.number("end"),
            reason=fields.text("reason"),
            measured=fields.measured("measured"),
        )


class SourceRow(Protocol):
    """A source row of the plan, or an earlier fate of one."""

    @property
    def row(self) -> int: ...

    @property
    def id(self) -> str: ...

    @property
    def retried_error(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFate:
    """The entry of one source row in a commit record; `committed`, `rejected` and `quarantined` make it."""

    row: int  # number of the source row, 1-based over the entire plan
    id: str
    fate: str  # COMMITTED, REJECTED or QUARANTINED
    retried_error: str = ""  # in a retry: the error that the row had before; stored as `retry_of`
    clips: int = 0  # of a committed row, at least one
    stretches: tuple[RejectedStretch, ...] = ()  # that became no clips; stored as `rejected`
    reason: str = ""  # of a rejected row
    measured: Measured | None = None  # of a row that was rejected as a whole
    error: str = ""  # of a quarantined row: a stable slug
    detail: str = ""  # of a quarantined row: the error in words

    @staticmethod
    def committed(of: SourceRow, clips: int, stretches: Iterable[RejectedStretch] = ()) -> RowFate:
        """The fate of a row that gave clips. `stretches` are its parts that gave none."""
        return RowFate(
            row=of.row,
            id=of.id,
            retried_error=of.retried_error,
            fate=COMMITTED,
            clips=clips,
            stretches=tuple(stretches),
        )

    @staticmethod
    def rejected(of: SourceRow, reason: str, measured: Measured) -> RowFate:
        """The fate of a row that was refused as a whole."""
        return RowFate(
            row=of.row, id=of.id, retried_error=of.retried_error, fate=REJECTED, reason=reason, measured=measured
        )

    @staticmethod
    def rejected_in_parts(of: SourceRow, reason: str, stretches: Iterable[RejectedStretch]) -> RowFate:
        """The fate of a row all of whose stretches were refused."""
        listed = tuple(stretches)
        assert listed, "a row without stretches is rejected as a whole"
        return RowFate(
            row=of.row, id=of.id, retried_error=of.retried_error, fate=REJECTED, reason=reason, stretches=listed
        )

    @staticmethod
    def quarantined(of: SourceRow, error: str, detail: str) -> RowFate:
        """The fate of a row that could not be used."""
        return RowFate(
            row=of.row, id=of.id, retried_error=of.retried_error, fate=QUARANTINED, error=error, detail=redacted(detail)
        )

    def to_json(self) -> dict[str, Any]:
        """The stored entry: only the fields that belong to the fate."""
        entry: dict[str, Any] = {"row": self.row, "id": self.id, "fate": self.fate}
        if self.retried_error:
            entry[RETRIED_ERROR] = self.retried_error
        if self.fate == COMMITTED:
            entry["clips"] = self.clips
        elif self.fate == REJECTED:
            entry["reason"] = self.reason
        else:
            entry |= {"error": self.error, "detail": self.detail}
        if self.measured is not None:
            entry["measured"] = self.measured
        elif self.fate != QUARANTINED:
            entry["rejected"] = [stretch.to_json() for stretch in self.stretches]
        return entry

    @staticmethod
    def from_json(fields: Fields) -> RowFate:
        """Raises: FieldError for a missing or wrongly typed field."""
        fate = fields.text("fate")
        clips, reason, error, detail = 0, "", "", ""
        measured: Measured | None = None
        stretches: tuple[RejectedStretch, ...] = ()
        if fate == COMMITTED:
            clips, stretches = fields.integer("clips"), fields.records("rejected", RejectedStretch.from_json)
        elif fate == QUARANTINED:
            error, detail = fields.text("error"), fields.text("detail")
        elif fate != REJECTED:
            raise fields.wrong("fate", f"{COMMITTED}, {REJECTED} or {QUARANTINED}", fate)
        elif "measured" in fields:
            reason, measured = fields.text("reason"), fields.measured("measured")
        else:
            reason, stretches = fields.text("reason"), fields.records("rejected", RejectedStretch.from_json)
            if not stretches:
                raise fields.wrong("rejected", "a list with at least one stretch", [])
        return RowFate(
            row=fields.integer("row"),
            id=fields.text("id"),
            fate=fate,
            retried_error=fields.text(RETRIED_ERROR) if RETRIED_ERROR in fields else "",
            clips=clips,
            stretches=stretches,
            reason=reason,
            measured=measured,
            error=error,
            detail=detail,
        )


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
