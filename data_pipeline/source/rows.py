"""The schema of a source row, and the checks that convert a batch of columns to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.outside.redaction import PERHAPS, SIGNATURE, USERINFO, holds_secret
from data_pipeline.source.further import objects
from data_pipeline.source.names import SPLITS
from data_pipeline.source.raw_rows import Column, MappedRows, shown
from data_pipeline.source.times import seconds_column, seconds_of

PROBLEM = "problem"
"""The column that says of a wrong row what is wrong with it."""
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
        pa.field(PROBLEM, pa.string(), nullable=False),  # why the row as written is of no use; "" : it is usable
    ]
)

_SCHEME = r"^[A-Za-z][A-Za-z0-9+.-]*://"
MOST_SECONDS = 2.0**53
"""Beyond this a double holds no whole second any more."""


def normalise(rows: MappedRows, first: int, name: str, folder: str = "") -> pa.RecordBatch:
    """Check the rows and convert them to `ROW_SCHEMA`.

    A wrong row keeps its number and its place. Its `problem` says what is wrong and what to do, its id is made of its
    place in the manifest, its video stays unless that holds a secret, and its other columns are empty.

    Args:
        rows: a batch with our names. A missing column counts as empty, and `further` go to `extra`.
        first: row number of the batch's first row in the plan.
        name: of the manifest.
        folder: what relative videos begin with, where it is not the manifest's own folder: `a/b`, or an address.
    """
    check = _Checker(rows)
    video = _without_space_around_urls(check.text("video", trim=False))
    check.refuse(_blank(video), "video is missing", hide=True)
    given = check.text("id", trim=False)
    label = check.text("label")
    for value in (video, given, label):
        check.refuse(
            _with_secrets(value),
            "a URL with credentials or a signature would end up in the dataset's records; use s3:// with credentials "
            "in the environment, or a plain URL",
            hide=True,
        )
    known = pc.match_substring_regex(video, r"^(s3|http|https)://[^/]+/.")
    check.refuse(
        pc.and_(pc.match_substring_regex(video, _SCHEME), pc.invert(known)),
        "only paths, s3://bucket/key and http(s)://host/path are followed",
        Column(video),
    )
    start, end = check.seconds("start"), check.seconds("end")
    check.refuse(pc.less_equal(pc.subtract(end, pc.fill_null(start, 0.0)), 0.0), "end must be after start", Column(end))
    split = pc.fill_null(check.text("split"), "")
    check.refuse(
        pc.invert(pc.is_in(split, pa.array(["", *SPLITS]))),
        f"split must be one of {', '.join(SPLITS)}, or its column be left out by columns.drop",
        Column(split),
    )
    caption = check.text("caption")
    extra = check.extra()
    if folder:
        video = _in_folder(video, folder)
    columns = {
        "id": _ids(given, video, start, end),
        "video": video,
        "caption": pc.if_else(pc.equal(caption, ""), pa.scalar(None, pa.string()), caption),
        "start": start,
        "end": end,
        "label": pc.fill_null(label, ""),
        "split": split,
        "extra": extra,
    }
    if check.problems:
        columns = _emptied(columns, check, name)
    problem = pa.array([check.problems.get(position, "") for position in range(check.count)], pa.string())
    numbers = pa.array(range(first, first + check.count), pa.int64())
    return pa.RecordBatch.from_arrays([numbers, *columns.values(), problem], schema=ROW_SCHEMA)


def _with_secrets(text: pa.Array) -> pa.Array:
    """Where a text holds an address with credentials or a signature. The few that may be signed are looked at."""
    found = pc.or_kleene(pc.match_substring_regex(text, USERINFO), pc.match_substring_regex(text, SIGNATURE))
    perhaps = pc.fill_null(pc.match_substring_regex(text, PERHAPS), False)
    if not pc.any(perhaps).as_py():
        return found
    positions = np.flatnonzero(perhaps.to_numpy(zero_copy_only=False)).tolist()
    marked = np.zeros(len(text), bool)
    marked[[position for position in positions if holds_secret(text[position].as_py())]] = True
    return pc.or_kleene(found, pa.array(marked))


def _blank(text: pa.Array) -> pa.Array:
    """Where a text is missing, empty or white space."""
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)


def _without_space_around_urls(video: pa.Array) -> pa.Array:
    """Addresses hold no white space at their ends; names of files and the ends of S3 keys may, and keep it."""
    trimmed = pc.utf8_ltrim_whitespace(video)
    video = pc.if_else(pc.match_substring_regex(trimmed, _SCHEME), trimmed, video)
    return pc.if_else(pc.match_substring_regex(video, r"(?i)^https?://"), pc.utf8_trim_whitespace(video), video)


def _in_folder(video: pa.Array, folder: str) -> pa.Array:
    elsewhere = pc.or_(pc.match_substring_regex(video, _SCHEME), pc.starts_with(video, "/"))
    return pc.if_else(elsewhere, video, pc.binary_join_element_wise(folder, video, "/"))


def _ids(given: pa.Array, video: pa.Array, start: pa.Array, end: pa.Array) -> pa.Array:
    """The id column. An empty id becomes the video's path as written, with start and end where the row has them."""
    window = pc.or_kleene(pc.is_valid(start), pc.is_valid(end))
    text = [pc.fill_null(pc.cast(times, pa.string()), "") for times in (start, end)]
    named = pc.if_else(window, pc.binary_join_element_wise(video, pc.binary_join_element_wise(*text, "-"), "@"), video)
    return pc.if_else(_blank(given), named, given)


def _emptied(columns: dict[str, pa.Array], check: _Checker, name: str) -> dict[str, pa.Array]:
    """The columns with nothing but a name and a video in the rows that have a problem."""
    bad = np.zeros(check.count, bool)
    bad[list(check.problems)] = True
    ids = [f"{name} {check.rows.place(position)}" if wrong else None for position, wrong in enumerate(bad.tolist())]
    hidden = np.zeros(check.count, bool)
    hidden[list(check.hidden & check.problems.keys())] = True
    mask = pa.array(bad)
    nothing = {
        key: pa.scalar(None, values.type) if key in ("caption", "start", "end") else pa.scalar("", pa.string())
        for key, values in columns.items()
    }
    emptied = {key: pc.if_else(mask, nothing[key], values) for key, values in columns.items()}
    emptied["id"] = pc.if_else(mask, pa.array(ids, pa.string()), columns["id"])
    emptied["video"] = pc.if_else(pa.array(hidden), pa.scalar("", pa.string()), pc.fill_null(columns["video"], ""))
    return emptied


def _without_secret(value: Any) -> str:
    text = shown(value)
    return "a URL with a secret" if holds_secret(text) else text


class _Checker:
    """Gives the columns of a batch with their types, and notes for each wrong row the first thing that is wrong."""

    def __init__(self, rows: MappedRows) -> None:
        self.rows = rows
        self.count = len(rows.numbers)
        self.problems = dict(rows.problems)
        self.hidden: set[int] = set()  # rows whose values must not be shown

    def refuse(
        self, wrong: pa.Array, why: str, values: Column | None = None, *, hide: bool = False, remedy: str = ""
    ) -> None:
        """Note a problem of the rows where `wrong` is true.

        Args:
            wrong: [rows]; null counts as false.
            why: the problem.
            values: shown, one of each row.
            hide: the values of these rows may be secrets, and no record keeps them.
            remedy: what to write.
        """
        wrong = pc.fill_null(wrong, False)
        if not pc.any(wrong).as_py():
            return
        for position in np.flatnonzero(wrong.to_numpy(zero_copy_only=False)).tolist():
            value = "" if hide or values is None else f", got {_without_secret(values.at(position))}"
            self.problems.setdefault(position, why + value + (f"; write {remedy}" if remedy else ""))
            if hide:
                self.hidden.add(position)

    def text(self, key: str, *, trim: bool = True) -> pa.Array:
        """A text column. For id and label whole numbers count as text.

        Args:
            trim: without white space at both ends. Names of files are kept as they are.
        """
        column = self.rows.named.get(key)
        values = pa.nulls(self.count, pa.string()) if column is None else column.values
        if column is not None and column.json:
            values = self._texts_among(key, column)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if key in ("id", "label") and pa.types.is_integer(values.type):
            values = pc.cast(values, pa.string())
        if (
            pa.types.is_null(values.type)
            or pa.types.is_large_string(values.type)
            or pa.types.is_string_view(values.type)
        ):
            values = pc.cast(values, pa.string())
        if not pa.types.is_string(values.type):
            self.refuse(pc.is_valid(values), f"{key} must be text", Column(values))
            values = pa.nulls(self.count, pa.string())
        return pc.utf8_trim_whitespace(values) if trim else values

    def _texts_among(self, key: str, column: Column) -> pa.Array:
        """The texts of a column whose values have several types."""
        kinds = str if key not in ("id", "label") else str | int
        values = column.to_pylist()
        wrong = [value is not None and (isinstance(value, bool) or not isinstance(value, kinds)) for value in values]
        self.refuse(pa.array(wrong), f"{key} must be text", column)
        texts = [None if bad or value is None else str(value) for bad, value in zip(wrong, values, strict=True)]
        return pa.array(texts, pa.string())

    def seconds(self, key: str) -> pa.Array:
        """A column of times in seconds; `times.seconds_of` says what is understood."""
        column = self.rows.named.get(key)
        if column is None:
            return pa.nulls(self.count, pa.float64())
        seconds = None if column.json else seconds_column(column.values)
        if seconds is None:
            seconds = pa.array(map(seconds_of, column.to_pylist()), pa.float64(), from_pandas=False)
        wrong = pc.or_kleene(pc.invert(pc.is_finite(seconds)), pc.less(seconds, 0.0))
        wrong = pc.or_kleene(wrong, pc.greater(seconds, MOST_SECONDS))
        self.refuse(wrong, f"{key} must be seconds, not negative", column, remedy="12.5, 0:01:02.5 or FRAMES/FPS")
        return seconds

    def extra(self) -> pa.Array:
        """The further columns as one JSON object for each row, without nulls."""
        extra = objects(self.rows.further, self.count, self.problems)
        self.refuse(
            _with_secrets(extra),
            "a further column holds a URL with credentials or a signature; drop the column, with columns.drop=[COLUMN]",
            hide=True,
        )
        return extra
