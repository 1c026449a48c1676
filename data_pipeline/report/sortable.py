"""Tables and lists that a reader sorts by a click, without a script: radio buttons choose the CSS `order` of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.report.html import Markup, join, tag

STYLE = """
.sortable > input { position: absolute; opacity: 0; }
.sortable .grid { display: grid; justify-content: start; font-variant-numeric: tabular-nums; overflow-x: auto; }
.sortable .list { display: flex; flex-direction: column; gap: 18px; }
.sortable .r { display: contents; }
.sortable .grid .o, .sortable .grid .h { padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); }
.sortable .h { order: -1; color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
.sortable .n { text-align: right; }
.sortable > p.h { white-space: normal; }
.sortable > p.h > span { display: inline-block; margin-right: 8px; white-space: nowrap; }
.sortable label { cursor: pointer; color: var(--accent); padding: 0 2px; }
"""


@dataclass(frozen=True)
class Item:
    """A row.

    Attributes:
        cells: of a table, one for each column; of a list, one for the whole item.
        keys: by which the item is sorted, one for each column; None and NaN come last in both directions.
    """

    cells: Sequence[object]
    keys: Sequence[float | str | None]


def sortable_table(name: str, columns: Sequence[str], items: Sequence[Item], numeric: Sequence[int] = ()) -> Markup:
    """A table whose head has two arrows in each column.

    Args:
        name: unique on the page, of letters and digits.
        numeric: numbers of the columns that are aligned right.
    Raises:
        ValueError: an item has another number of cells or keys than there are columns.
    """
    for item in items:
        if not len(item.cells) == len(item.keys) == len(columns):
            raise ValueError(f"row {list(item.cells)} does not have {len(columns)} cells and keys")
    sides = ["n" if place in numeric else "" for place in range(len(columns))]
    head = [tag("div", title, *_arrows(name, place), class_=f"h {sides[place]}") for place, title in enumerate(columns)]
    rows = [
        tag(
            "div",
            *(tag("div", cell, class_=f"o {side}") for cell, side in zip(item.cells, sides, strict=True)),
            class_="r",
            style=style,
        )
        for item, style in zip(items, _orders(items, len(columns)), strict=True)
    ]
    widths = f"grid-template-columns: repeat({len(columns)}, auto)"
    return _sorted(name, len(columns), tag("div", *head, *rows, class_="grid", style=widths))


def sortable_list(name: str, columns: Sequence[str], items: Sequence[Item]) -> Markup:
    """Items below each other, and above them the columns by which they can be sorted."""
    chosen = [tag("span", title, *_arrows(name, place)) for place, title in enumerate(columns)]
    rows = [
        tag("div", *item.cells, class_="o", style=style)
        for item, style in zip(items, _orders(items, len(columns)), strict=True)
    ]
    return _sorted(name, len(columns), tag("p", "Sort by: ", *chosen, class_="h"), tag("div", *rows, class_="list"))


def _arrows(name: str, place: int) -> list[Markup]:
    return [
        tag("label", sign, for_=f"{name}-{way}{place}", title=title)
        for way, sign, title in (("u", "▲", "smallest first"), ("d", "▼", "largest first"))
    ]


def _orders(items: Sequence[Item], columns: int) -> list[str]:
    """For each item the place that it takes for each column and direction, as CSS variables."""
    styles = [""] * len(items)
    for column in range(columns):
        keys = [item.keys[column] for item in items]
        there = [place for place, key in enumerate(keys) if not _is_missing(key)]
        missing = [place for place, key in enumerate(keys) if _is_missing(key)]
        for way, backwards in (("u", False), ("d", True)):
            ordered = sorted(there, key=lambda place: keys[place], reverse=backwards)  # type: ignore[arg-type,return-value]
            for rank, place in enumerate([*ordered, *missing]):
                styles[place] += f"--{way}{column}:{rank};"
    return styles


def _is_missing(key: float | str | None) -> bool:
    return key is None or (isinstance(key, float) and math.isnan(key))


def _sorted(name: str, columns: int, *children: Markup) -> Markup:
    inputs, rules = [], [STYLE]
    for column in range(columns):
        for way in ("u", "d"):
            inputs.append(Markup(f'<input type="radio" name="{name}" id="{name}-{way}{column}">'))
            rules.append(f"#{name}-{way}{column}:checked ~ * .o {{ order: var(--{way}{column}); }}")
    style = Markup(f"<style>{''.join(rules)}</style>")
    return tag("div", style, join(*inputs), *children, class_="sortable", id=name)
