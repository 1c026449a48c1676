"""Which columns of a manifest hold what: found by their names, by the user's settings, or refused with the nearest."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.source.config import TEMPLATE_KEYS, ColumnsConfig, template_parts
from data_pipeline.source.raw_rows import Column, MappedRows, RawRows, shown

_LISTED = 30  # columns that a message names
_OFTEN = {
    "video": ("video", "url", "path", "file", "filename", "file_name", "videoid", "video_id", "youtube_id", "ytid"),
    "caption": ("caption", "text", "name", "title", "description", "sentence", "prompt", "captions", "texts"),
    "id": ("id", "key", "uid"),
    "start": ("start", "begin", "start_time", "time_start", "start_timestamp"),
    "end": ("end", "stop", "end_time", "time_end", "end_timestamp"),
    "label": ("label", "class", "category"),
    "split": ("split", "subset", "partition"),
}
"""How public manifests call what we name so; only for the remedy of a refusal."""


class ColumnMap:
    """The columns of one manifest.

    Args:
        config: the user's settings.
        name: of the manifest, for messages.
    """

    def __init__(self, config: ColumnsConfig, name: str) -> None:
        self.name = name
        self._parts = {key: template_parts(key, getattr(config, key)) for key in TEMPLATE_KEYS}
        if config.times:
            del self._parts["start"], self._parts["end"]
            self._parts["times"] = [("", config.times, "")]
        self._drop, self._explode = frozenset(config.drop), tuple(config.explode)
        for key in self._drop.intersection(self._parts):  # a column with one of our names that is not read as such
            if self._parts[key] == [("", key, "")]:
                del self._parts[key]
        self._taken = {parts[0][1] for parts in self._parts.values() if _is_plain(parts)} | self._drop
        self._used = {column for parts in self._parts.values() for _, column, _ in parts if column}

    @property
    def typed(self) -> frozenset[str]:
        """Columns whose values are used, not only kept."""
        return frozenset(self._used | set(self._explode))

    @property
    def explode(self) -> tuple[str, ...]:
        """Columns whose texts are always read as lists; a column with one of our names goes by that name."""
        ours = {parts[0][1]: key for key, parts in self._parts.items() if _is_plain(parts)}
        return tuple(ours.get(column, column) for column in self._explode)

    @property
    def dropped(self) -> frozenset[str]:
        """Columns that need not be read."""
        return self._drop - self._used

    def check(self, rows: RawRows, *, needs_caption: bool) -> str:
        """Look at the columns of the first rows; returns what they are taken for, in words.

        Args:
            rows: the first batch.
            needs_caption: refuse a manifest without captions.
        Raises:
            ValueError: no video or caption column, or a column of the settings that is not there, with what is.
        """
        found = list(rows.columns)
        if needs_caption and "caption" not in self._parts:
            raise ValueError(
                f"{self.name}: columns.drop leaves 'caption' out, and captions are required; name another column in "
                "columns.caption, or pass caption.required=false for a dataset without captions"
            )
        for key, parts in self._parts.items():
            for column in (column for _, column, _ in parts if column and column not in found):
                if (
                    column == key
                    and key != "video"
                    and (key != "caption" or not self._captions_lost(found, needs_caption))
                ):
                    continue
                raise ValueError(self._missing(key, column, found))
        for column in (*self._explode, *self._drop):
            if column not in (*found, *rows.unread):
                raise ValueError(f"{self.name} has no column {column!r} to explode or drop; {_list(found)}")
        self._refuse_bytes(rows)
        return self._recognised(found)

    def apply(self, rows: RawRows) -> MappedRows:
        """The rows under our names."""
        problems = dict(rows.problems)
        named = {
            key: column
            for key, parts in self._parts.items()
            if (column := self._column(key, parts, rows, problems)) is not None
        }
        further = {name: column for name, column in rows.columns.items() if name not in self._taken}
        return MappedRows(named, further, rows.numbers, problems)

    def _column(
        self, key: str, parts: Sequence[tuple[str, str, str]], rows: RawRows, problems: dict[int, str]
    ) -> Column | None:
        if _is_plain(parts):
            return rows.columns.get(parts[0][1])
        return _filled(key, parts, rows, problems)

    def _captions_lost(self, found: Sequence[str], needs_caption: bool) -> bool:
        """Whether captions are needed, or there is a column that was surely meant to hold them."""
        return needs_caption or any(name.strip().casefold() == "caption" for name in found)

    def _missing(self, key: str, column: str, found: Sequence[str]) -> str:
        what = f"no column {column!r}" + ("" if column == key else f", which columns.{key} names")
        near = _nearest(key, column, found)
        word = shlex.quote(f"columns.{key}={near[0]}") if near else ""
        remedy = f"; nearest: {', '.join(map(repr, near))}; pass {word}" if near else ""
        single = len(found) == 1 and [mark for mark in ";|\t," if mark in found[0]]
        if single:
            remedy = f"; the line holds {single[0]!r}: part the values of a .csv with commas, of a .tsv with tabs"
        if not remedy:
            remedy = f"; pass columns.{key}=COLUMN"
        if key == "caption":
            remedy += ", or caption.required=false for a dataset without captions" if column == key and not near else ""
        return f"{self.name} has {what}; {_list(found)}{remedy}"

    def _refuse_bytes(self, rows: RawRows) -> None:
        for name, column in rows.columns.items():
            kind = column.values.type
            if _has_bytes(kind) and column.values.null_count < len(column.values) and name not in self._drop:
                use = (
                    "write the videos to files and name those"
                    if name in self._used
                    else f"pass {shlex.quote(f'columns.drop=[{name}]')} to leave it out"
                )
                raise ValueError(f"{self.name}: column {name!r} holds bytes ({kind}), not text; {use}")

    def _recognised(self, found: Sequence[str]) -> str:
        known, further = [], [name for name in found if name not in self._taken]
        for key, parts in self._parts.items():
            if _is_plain(parts) and parts[0][1] in found:
                known.append(key if parts[0][1] == key else f"{key} = {parts[0][1]!r}")
            elif not _is_plain(parts):
                known.append(f"{key} = {''.join(_written(part) for part in parts)!r}")
        line = f"columns {', '.join(known)}"
        if further:
            line += f"; kept beside them: {', '.join(map(shown, further[:_LISTED]))}"
        missing = [key for key, parts in self._parts.items() if parts == [("", key, "")] and key not in found]
        hints = [
            f"{name!r} is not read as {key} (columns.{key}={name} would)"
            for key in missing
            for name in further
            if name.strip().casefold() == key
        ]
        return "; ".join([line, *hints])


def _is_plain(parts: Sequence[tuple[str, str, str]]) -> bool:
    """Whether a setting names a column, and is no template."""
    return len(parts) == 1


def _written(part: tuple[str, str, str]) -> str:
    literal, column, form = part
    return literal + (f"{{{column}{':' if form else ''}{form}}}" if column else "")


def _list(found: Sequence[str]) -> str:
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"its columns are {', '.join(map(shown, found[:_LISTED]))}{more}" if found else "its rows name no columns"


def _nearest(key: str, column: str, found: Sequence[str]) -> list[str]:
    """The columns that may be meant, the nearest first."""
    folded = {name: name.strip().casefold().replace(" ", "_").replace("-", "_") for name in found}
    wanted = [column.casefold(), *_OFTEN.get(key, ())]
    exact = [name for word in wanted for name, plain in folded.items() if plain == word]
    inside = [name for name, plain in folded.items() if any(word in plain for word in wanted[:3] if len(word) > 2)]
    close = [name for name, plain in folded.items() if difflib.get_close_matches(plain, wanted, 1, 0.75)]
    return list(dict.fromkeys([*exact, *close, *inside]))[:3]


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_has_bytes(kind.field(n).type) for n in range(kind.num_fields))


def _filled(key: str, parts: Sequence[tuple[str, str, str]], rows: RawRows, problems: dict[int, str]) -> Column:
    """A template with the values of each row. A row without one of the values gets a problem."""
    count = len(rows.numbers)
    pieces: list[pa.Array | pa.Scalar] = []
    for literal, name, form in parts:
        pieces.append(pa.scalar(literal))
        if name:
            pieces.append(_texts(key, name, form, rows.columns.get(name), count, problems))
    text = pc.binary_join_element_wise(*pieces, pa.scalar(""), null_handling="emit_null")
    return Column(text if isinstance(text, pa.Array) else pa.array([text.as_py()] * count, pa.string()))


def _texts(key: str, name: str, form: str, column: Column | None, count: int, problems: dict[int, str]) -> pa.Array:
    values = [None] * count if column is None else column.to_pylist()
    texts: list[str | None] = []
    for position, value in enumerate(values):
        text = None
        if value is None or value == "":
            why = "is empty"
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            why = f"holds a {type(value).__name__}"
        elif isinstance(value, float) and key not in ("start", "end"):
            why = f"holds {value}, and a name is made of text and whole numbers"
        else:
            try:
                text = format(int(value) if form and form[-1] in "dxX" else value, form)
            except (ValueError, OverflowError) as error:
                why = f"does not fit {{{name}:{form}}}: {error}"
        if text is None:
            problems.setdefault(position, f"column {name!r} {why}; columns.{key} needs it")
        texts.append(text)
    return pa.array(texts, pa.string())
