"""The schema of a source row, and the checks that convert a batch of raw columns to it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.source.names import SPLITS

NAMED_COLUMNS = ("video", "caption", "id", "start", "end", "label", "split")
MIXED = {b"mixed": b"json"}
"""Field metadata of a raw column whose values have no common type. Each value of the column is its JSON text."""

ROW_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # 1-based position in the manifest
        pa.field("id", pa.string(), nullable=False),
        pa.field("video", pa.string(), nullable=False),  # as written: relative path, absolute path or URL
        pa.field("caption", pa.string()),  # null: none given
        pa.field("start", pa.float64()),  # seconds; null: from the beginning
        pa.field("end", pa.float64()),  # seconds; null: to the end
        pa.field("label", pa.string(), nullable=False),  # "" : none
        pa.field("split", pa.string(), nullable=False),  # "" : by hash
        pa.field("extra", pa.string(), nullable=False),  # the other columns as one JSON object, "" when there are none
    ]
)

_SCHEME = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_USERINFO = r"(?i)\b[a-z][a-z0-9+.-]*://[^/?#\s\"]*@"
_SIGNATURE = (
    r"(?i)[?&;](x-amz-(signature|credential|security-token)|x-goog-(signature|credential)|awsaccesskeyid|signature|sig"
    r"|token|access_token|auth|api_?key|password|secret)="
)


def normalise(batch: pa.RecordBatch, first: int, name: str) -> pa.RecordBatch:
    """Convert raw columns to `ROW_SCHEMA`.

    Args:
        batch: columns as the source has them. A missing column counts as empty, and an unknown one goes to `extra`.
        first: row number of the batch's first row.
        name: name of the source in error messages.
    Raises:
        ValueError: a wrong value, with its row number and the remedy.
    """
    check = _Checker(batch, first, name)
    video = check.text("video")
    check.refuse(pc.or_kleene(pc.is_null(video), pc.equal(video, "")), "video is missing", hide=True)
    for value in (video, check.text("id"), check.text("label")):
        check.refuse(
            pc.or_kleene(pc.match_substring_regex(value, _USERINFO), pc.match_substring_regex(value, _SIGNATURE)),
            "a URL with credentials or a signature would end up in the dataset's records; use s3:// with credentials "
            "in the environment, or a plain URL",
            hide=True,
        )
    known = pc.match_substring_regex(video, r"^(s3|http|https)://[^/]+/.")
    check.refuse(
        pc.and_(pc.match_substring_regex(video, _SCHEME), pc.invert(known)),
        "only paths, s3://bucket/key and http(s)://host/path are followed",
        video,
    )
    start, end = check.seconds("start"), check.seconds("end")
    check.refuse(pc.less_equal(pc.subtract(end, pc.fill_null(start, 0.0)), 0.0), "end must be after start", end)
    split = pc.fill_null(check.text("split"), "")
    check.refuse(
        pc.invert(pc.is_in(split, pa.array(["", *SPLITS]))), f"split must be one of {', '.join(SPLITS)}", split
    )
    caption = check.text("caption")
    columns = [
        pa.array(range(first, first + batch.num_rows), pa.int64()),
        _ids(check.text("id"), video, start, end),
        video,
        pc.if_else(pc.equal(caption, ""), pa.scalar(None, pa.string()), caption),
        start,
        end,
        pc.fill_null(check.text("label"), ""),
        split,
        check.extra(),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROW_SCHEMA)


def _ids(given: pa.Array, video: pa.Array, start: pa.Array, end: pa.Array) -> pa.Array:
    """The id column. An empty id becomes the video's path as written, with start and end where the row has them."""
    window = pc.or_kleene(pc.is_valid(start), pc.is_valid(end))
    text = [pc.fill_null(pc.cast(times, pa.string()), "") for times in (start, end)]
    named = pc.if_else(window, pc.binary_join_element_wise(video, pc.binary_join_element_wise(*text, "-"), "@"), video)
    return pc.if_else(pc.equal(pc.fill_null(given, ""), ""), named, given)


class _Checker:
    """Gives the columns of one raw batch with their types. A wrong value is a ValueError that names its row."""

    def __init__(self, batch: pa.RecordBatch, first: int, name: str) -> None:
        self.batch, self.first, self.name = batch, first, name

    def raw(self, column: str) -> pa.Array:
        if column in self.batch.schema.names:
            return self.batch.column(column)
        return pa.nulls(self.batch.num_rows, pa.string())

    def mixed(self, column: str) -> bool:
        """Whether the values of a column have several types."""
        return column in self.batch.schema.names and self.batch.schema.field(column).metadata == MIXED

    def refuse(self, wrong: pa.Array, why: str, values: pa.Array | None = None, *, hide: bool = False) -> None:
        """Raise an error for the first row where `wrong` is true; null counts as false. `hide` leaves out the value."""
        position = pc.index(pc.fill_null(wrong, False), True).as_py()
        if position >= 0:
            shown = "" if hide or values is None else f", got {values[position].as_py()!r}"
            raise ValueError(f"{self.name} row {self.first + position}: {why}{shown}")

    def text(self, column: str) -> pa.Array:
        """A text column without white space at both ends. For id and label whole numbers count as text."""
        values = self.raw(column)
        if self.mixed(column):
            self.refuse(pc.invert(pc.starts_with(values, '"')), f"{column} must be text", values)
            values = pa.array(
                [None if value is None else json.loads(value) for value in values.to_pylist()], pa.string()
            )
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if column in ("id", "label") and pa.types.is_integer(values.type):
            values = pc.cast(values, pa.string())
        if (
            pa.types.is_null(values.type)
            or pa.types.is_large_string(values.type)
            or pa.types.is_string_view(values.type)
        ):
            values = pc.cast(values, pa.string())
        if not pa.types.is_string(values.type):
            self.refuse(pc.is_valid(values), f"{column} must be text", values)
            values = pa.nulls(len(values), pa.string())
        return pc.utf8_trim_whitespace(values)

    def seconds(self, column: str) -> pa.Array:
        """A column of times in seconds. A text may be `12.5` or `H:MM:SS.s`."""
        values = self.raw(column)
        if pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type):
            seconds = pc.cast(values, pa.float64())
        else:
            text = self.text(column)
            seconds = pa.array([_parse_seconds(value) for value in text.to_pylist()], pa.float64(), from_pandas=False)
        wrong = pc.or_kleene(pc.invert(pc.is_finite(seconds)), pc.less(seconds, 0.0))
        self.refuse(wrong, f"{column} must be seconds, not negative", values)
        return seconds

    def extra(self) -> pa.Array:
        """The columns that are not in NAMED_COLUMNS, as one JSON object for each row, without nulls."""
        names = sorted(set(self.batch.schema.names) - set(NAMED_COLUMNS))
        if not names:
            return pa.array([""] * self.batch.num_rows, pa.string())
        rows = self.batch.select(names).to_pylist()
        mixed = {key for key in names if self.mixed(key)}
        texts = []
        for position, row in enumerate(rows):
            kept = {
                key: json.loads(value) if key in mixed else value for key, value in row.items() if value is not None
            }
            try:
                texts.append(
                    json.dumps(kept, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
                    if kept
                    else ""
                )
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.name} row {self.first + position}: a further column cannot be kept: {error}"
                ) from error
        extra = pa.array(texts, pa.string())
        self.refuse(
            pc.or_kleene(pc.match_substring_regex(extra, _USERINFO), pc.match_substring_regex(extra, _SIGNATURE)),
            "a further column holds a URL with credentials or a signature; drop the column",
            hide=True,
        )
        return extra


def _parse_seconds(text: str | None) -> float | None:
    """Seconds of `12.5`, `1:02.5` or `0:01:02.5`. Another text gives NaN, and no text gives None."""
    if not text:
        return None
    try:
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + float(part)
        return seconds
    except ValueError:
        return float("nan")


def _plain(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"a {type(value).__name__} has no JSON form")
