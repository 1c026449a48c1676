"""Rows that hold lists, one row a source with a list of times and a list of captions, become one row an item.

Lists are those of Parquet and JSONL, or, in a text, a list as JSON or Python writes it: `[["0:01", "0:03"], [4, 7.5]]`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.source.raw_rows import NAMED_COLUMNS, Column, MappedRows, shown, typed_column

_SLICE = 256  # rows that are taken apart together, so that long lists need little memory
_TIMES = ("start", "end", "times")


def one_row_an_item(rows: MappedRows, explode: Sequence[str]) -> Iterator[MappedRows]:
    """The rows, with those that hold lists taken apart; without lists the same object.

    The lists of a row have the same length, and a single value stands for all items. An item's id is that of the row
    with `#` and the item's number; without an id, a window names the item, and without a window the video and number.

    Args:
        rows: a batch.
        explode: columns whose texts are read as lists even where no time is a list, and further columns whose lists
            go with the others.
    """
    keys = [key for key, column in rows.named.items() if key == "times" or _may_hold_lists(key, column)]
    keys += [name for name in explode if name in rows.named or name in rows.further]
    if not keys:
        yield rows
        return
    for begin in range(0, len(rows.numbers), _SLICE):
        yield _Items(rows, np.arange(begin, min(begin + _SLICE, len(rows.numbers))), keys, explode).rows()


def _may_hold_lists(key: str, column: Column) -> bool:
    kind = column.values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return True
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not text or not (column.json or key in _TIMES):
        return False
    begin = r'^"?\s*[\[(]' if column.json else r"^\s*[\[(]"
    return bool(pc.any(pc.match_substring_regex(column.values, begin)).as_py())


class _Items:
    """Takes the rows of a slice apart.

    Args:
        rows: the batch that the slice is of.
        positions: [rows] of the slice in the batch.
        keys: columns that may hold lists.
        explode: columns whose texts are read as lists in any case.
    """

    def __init__(self, rows: MappedRows, positions: np.ndarray, keys: Sequence[str], explode: Collection[str]) -> None:
        self.explode = explode
        self.source = rows
        self.positions = positions
        wanted = dict.fromkeys([*keys, "id", "video", "caption", "start", "end", "times"])
        self.given = {
            key: column.take(positions).to_pylist()
            for key in wanted
            if (column := rows.named.get(key) or rows.further.get(key)) is not None
        }
        self.parents: list[int] = []  # of each item, its row's position in the batch
        self.items: list[int] = []  # of each item, its number in its row; 0 for a row without lists
        self.problems: dict[int, str] = {}
        self.values: dict[str, list[Any]] = {key: [] for key in (*self.given, "id", "start", "end") if key != "times"}

    def rows(self) -> MappedRows:
        """The items as rows."""
        for place, position in enumerate(self.positions.tolist()):
            given = {key: values[place] for key, values in self.given.items()}
            problem = self.source.problems.get(position, "")
            try:
                lists = {} if problem else _lists(given, self.explode)
            except ValueError as error:
                problem, lists = str(error), {}
            self._add(position, given, lists, problem)
        parents = np.array(self.parents, np.int64)
        changed = {key: typed_column(values) for key, values in self.values.items()}
        return replace(
            self.source,
            named={
                key: changed[key] if key in changed else column.take(parents)
                for key, column in ({**self.source.named, **changed}).items()
                if key in NAMED_COLUMNS and key != "times"
            },
            further={
                name: changed[name] if name in changed and name not in self.source.named else column.take(parents)
                for name, column in self.source.further.items()
            },
            numbers=self.source.numbers[parents],
            problems=self.problems,
            items=np.array(self.items, np.int64),
        )

    def _add(self, position: int, given: Mapping[str, Any], lists: Mapping[str, Sequence[Any]], problem: str) -> None:
        count = len(next(iter(lists.values()))) if lists else 1
        for number in range(count):
            if problem:
                self.problems[len(self.parents)] = problem
            item = {**given, **{key: values[number] for key, values in lists.items()}}
            if "id" not in lists and lists:
                item["id"] = _item_id(item, number + 1)
            for key, values in self.values.items():
                values.append(None if problem and key != "video" else item.get(key))
            self.parents.append(position)
            self.items.append(number + 1 if lists else 0)


def _item_id(item: Mapping[str, Any], number: int) -> Any:
    """The id of an item whose row has one id or none; None leaves the naming to the window."""
    if item.get("id") not in (None, ""):
        return f"{item['id']}#{number}"
    if item.get("start") in (None, "") and item.get("end") in (None, "") and isinstance(item.get("video"), str):
        return f"{item['video']}#{number}"
    return None


def _lists(given: dict[str, Any], explode: Collection[str]) -> dict[str, Sequence[Any]]:
    """The lists of a row. `start` and `end` take the place of `times` in it, and in `given` where it holds one pair.

    Raises: ValueError for an empty list, lists of several lengths, or what is no pair of times.
    """
    found: dict[str, Sequence[Any]] = {}
    for key in [key for key in given if key not in ("id", "video", "caption")]:
        if (value := _list_of(key, given[key])) is not None:
            found[key] = value
    timed = bool(found)
    for key in ("id", "video", "caption"):
        may_hold = key in given and (timed or key in explode or not isinstance(given[key], str))
        if may_hold and (value := _list_of(key, given[key])) is not None:
            found[key] = value
    if "times" in given:
        _part_times(given, found)
    lengths = {key: len(value) for key, value in found.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ValueError(f"its lists have different lengths: {counts}; each item needs one of every list")
    if 0 in lengths.values():
        raise ValueError(f"the list of {next(iter(lengths))} is empty; drop the row, or fill the list")
    return found


def _part_times(given: dict[str, Any], found: dict[str, Sequence[Any]]) -> None:
    times = found.pop("times", None)
    if times is None:
        if given["times"] not in (None, ""):
            raise ValueError(f"times must be a pair [start, end] or a list of pairs, got {shown(given['times'])}")
        return
    if not times:
        raise ValueError("the list of times is empty; drop the row, or fill the list")
    single = len(times) == 2 and not any(isinstance(time, list | tuple) for time in times)
    for pair in [times] if single else times:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"times must hold pairs [start, end], got {shown(pair)}")
    if single:
        given["start"], given["end"] = times
    else:
        found["start"], found["end"] = [pair[0] for pair in times], [pair[1] for pair in times]


def _check_items(key: str, items: Sequence[Any]) -> None:
    """Python can write lists of more than JSON and a text can hold. Raises: ValueError."""
    try:
        json.dumps(items, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} holds half of a surrogate pair, which is no character; mend the text") from error
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the list of {key} holds more than texts, numbers and lists: {error}") from error


def _list_of(key: str, value: Any) -> Sequence[Any] | None:
    """The list that a value is or writes; None for a value that is no list."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "(")):
        return None
    if key == "caption" and not value.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            parsed = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if not isinstance(parsed, list | tuple):
            return None
        _check_items(key, parsed)
        return parsed
    raise ValueError(f"{key} begins like a list and is none that JSON or Python reads: {shown(value)}")
