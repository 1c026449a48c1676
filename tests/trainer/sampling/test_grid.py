"""The page of samples, read back with Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from model.dit_config import Conditioning
from trainer.sampling.grid import MOST_VIDEOS, Row, grid_page


class Grid(HTMLParser):
    """The cells of each row of the table, and the page's text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        if name == "tr":
            self.rows.append([])
        elif name == "video":
            found = dict(attributes)
            assert {"autoplay", "loop", "muted"} <= set(found)
            self.rows[-1].append(unquote(found["src"] or ""))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(rows: list[Row], condition: Conditioning = Conditioning.class_) -> Grid:
    grid = Grid()
    grid.feed(grid_page(rows, {"seed": 7}, condition))
    return grid


def test_a_row_for_each_class_and_a_column_for_each_sample() -> None:
    grid = read([Row("a <b>", ["one.mp4", "a #2?.mp4"]), Row("", ["three.mp4"])])
    assert grid.rows == [[], ["one.mp4", "a #2?.mp4"], ["three.mp4"]]
    for text in ("a <b>", "3 videos in 2 rows", "seed 7"):
        assert text in grid.text
    assert "are shown here" not in grid.text


@pytest.mark.parametrize(
    ("condition", "title", "cells"),
    [(Conditioning.class_, "diving", "class0diving"), (Conditioning.text, "a cat", "prompt0a cat"),
     (Conditioning.none, "", "condition0none")],
)  # fmt: skip
def test_the_first_column_says_what_the_rows_are(condition: Conditioning, title: str, cells: str) -> None:
    assert read([Row(title, ["one.mp4"])], condition).text.rstrip().endswith(cells)


def test_a_page_that_would_play_too_many_says_how_many_it_shows() -> None:
    wide = read([Row(f"class {number}", [f"{number}-{place}.mp4" for place in range(300)]) for number in range(4)])
    assert [len(row) for row in wide.rows] == [0, 100, 100, 100, 100]
    assert f"{MOST_VIDEOS} of them are shown here" in wide.text
    long = read([Row(f"class {number}", [f"{number}.mp4"]) for number in range(MOST_VIDEOS + 5)])
    assert sum(map(len, long.rows)) == MOST_VIDEOS
    assert f"{MOST_VIDEOS} of them are shown here" in long.text
