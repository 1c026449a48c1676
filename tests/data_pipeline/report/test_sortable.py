"""What a click does: the order of the rows is that of the keys, in both directions, with what is missing last."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from data_pipeline.report.html import page
from data_pipeline.report.sortable import Item, sortable_list, sortable_table
from tests.tools import browser

ROWS = [("carol", 2.5), ("<bob>", None), ("alice", -1.0), ("dave", math.nan), ("eve", 10.0)]
ITEMS = [Item([name, value], [name, value]) for name, value in ROWS]
BY_VALUE = {"u1": ["alice", "carol", "eve"], "d1": ["eve", "carol", "alice"]}


def by_order(markup: str, way: str) -> list[str]:
    """The first cells of the rows, as CSS orders them."""
    found = re.findall(r'<div class="r" style="([^"]*)"><div class="o ">(.*?)</div>', markup)
    return [name for _, name in sorted((int(re.findall(rf"--{way}:(\d+);", style)[0]), name) for style, name in found)]


def test_rows_are_ordered_by_their_keys_and_what_is_missing_is_last() -> None:
    markup = sortable_table("t", ["name", "value"], ITEMS, numeric=[1])
    for way, expected in BY_VALUE.items():
        assert by_order(markup, way)[:3] == expected
        assert sorted(by_order(markup, way)[3:]) == ["&lt;bob&gt;", "dave"]
    assert by_order(markup, "u0") == ["&lt;bob&gt;", "alice", "carol", "dave", "eve"]
    assert "<bob>" not in markup


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="does not have 2 cells"):
        sortable_table("t", ["name", "value"], [Item(["x"], ["x"])])


@pytest.mark.skipif(not browser.program(), reason="no Chromium")
def test_a_browser_draws_a_table_and_a_list_in_that_order(tmp_path: Path) -> None:
    """One arrow of each is clicked. A long line of columns is wrapped."""
    columns = ["value", *(f"METRIC-{number} of runs/model-{number}" for number in range(12))]
    items = [Item([name], [value] * len(columns)) for name, value in ROWS]
    both = sortable_table("t", ["name", "value"], ITEMS), sortable_list("w", columns, items)
    (tmp_path / "page.html").write_text(page("t", *both))
    seen = browser.look_at(tmp_path / "page.html", ["label[for=t-d1]", "label[for=t-u1]", "label[for=w-d0]"])
    assert (seen["console"], seen["scripts"]) == ([], 0)
    assert seen["width"] <= 1280
    drawn = [words for _, words in sorted(seen["rows"], key=lambda row: row[0]) if words in ("alice", "carol", "eve")]
    assert drawn == [*BY_VALUE["u1"], *BY_VALUE["d1"]]
