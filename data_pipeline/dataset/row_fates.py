"""What became of each source row: it gave clips, it was rejected, or it is in quarantine. A commit record holds these.

`to_json` and `from_json` are as in `records.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from data_pipeline.dataset.fields import Fields, Measured, Number
from data_pipeline.outside.redaction import redacted

COMMITTED, REJECTED, QUARANTINED = "committed", "rejected", "quarantined"
RETRIED_ERROR = "retry_of"
"""Field of `RowFate.retried_error` in a stored record, and column of `PlanRow.retried_error` in the stored rows."""
TAKEN_DOWN = "taken_down"
"""Reason of a row whose source was removed on demand."""
WRONG_ROW = "wrong_row"
"""Reason of a row that is wrong as the manifest has it, with `rows=record`."""
NEAR_DUPLICATE = "near_duplicate"
"""Reason of a clip that shows what a clip of another row shows, and of a row without any other clip."""


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
