"""The page's building blocks, read back with Python's own parsers."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from data_pipeline.report.html import (
    Chart,
    Markup,
    Series,
    card,
    fold,
    image,
    page,
    section,
    table,
    tag,
    text,
    ticks,
    video,
)

NASTY = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "!doctype"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert not reader.open
    return reader


def test_everything_is_escaped_wherever_it_is_placed() -> None:
    document = page(
        NASTY, section(NASTY, tag("p", NASTY, title=NASTY)), table([NASTY], [[NASTY]]), card(NASTY, NASTY, NASTY),
        fold(NASTY, NASTY), image(b"x", "image/png", NASTY),
        Chart(NASTY, [Series(NASTY, [0, 1], [1, 2]), Series("b", [0], [1])], NASTY, 0, NASTY).render(),
    )  # fmt: skip
    reader = read(document)
    assert "script" not in reader.tags
    assert reader.text.count(NASTY) == 15  # title, h2, p, 2 cells, 3 in the card, 2 in the fold, 5 in the chart
    assert ("title", NASTY) in reader.attributes
    assert ("alt", NASTY) in reader.attributes


def test_the_page_refers_to_nothing_outside() -> None:
    document = page("t", image(b"\x89PNG", "image/png", "p"), Chart("c", [Series("s", [0, 1], [0, 1])]).render())
    reader = read(document)
    assert not [value for name, value in reader.attributes if name == "href"]
    assert all((value or "").startswith("data:") for name, value in reader.attributes if name == "src")
    assert not re.search(r"https?://|url\(|@import", document)
    assert (
        "content",
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'",
    ) in reader.attributes


def test_none_shows_as_a_dash_and_markup_stays() -> None:
    assert text(None) == "–"
    assert text(Markup("<b>x</b>")) == "<b>x</b>"


def test_a_table_with_a_ragged_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b'\] does not have 1 cells"):
        table(["h"], [["a", "b"]])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (8.2, 17.9, [10, 12, 14, 16]), (-0.3, 0.3, [-0.2, 0, 0.2]), (5, 5, [5])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    marks = ticks(low, high)
    assert marks[0] >= low
    assert marks[-1] <= high
    assert set(expected) <= {round(value, 9) for value in marks}
    assert len(marks) <= 11


def points(chart: Chart) -> list[list[tuple[float, float]]]:
    svg = re.search(r"<svg.*</svg>", chart.render())
    assert svg is not None
    paths = [node.attrib["d"] for node in ElementTree.fromstring(svg[0]).iter("path")]
    return [[tuple(map(float, pair.split(","))) for pair in path[1:].split(" L")] for path in paths]  # type: ignore[misc]


def test_a_curve_goes_through_its_values_in_proportion() -> None:
    (line,) = points(Chart("c", [Series("s", [0, 50, 100], [1.0, 3.0, 2.0])]))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0  # SVG counts downwards
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.3)


def test_missing_values_leave_a_gap() -> None:
    lines = points(Chart("c", [Series("s", range(6), [1, 2, math.nan, None, 3, 4])]))
    assert [len(line) for line in lines] == [2, 2]
    log = points(Chart("c", [Series("s", range(4), [1, 0, 10, 100])], log=True))
    assert [len(line) for line in log] == [2, 2]
    (first, _), (second, third) = log
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.3)


def test_a_curve_without_values_says_so() -> None:
    assert "no values were recorded" in Chart("c", [Series("s", [0, 1], [None, math.inf])]).render()


def test_a_drawing_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="chart 'c': no values were recorded"):
        Chart("c", [Series("s", [0, 1], [None, math.inf])]).svg()


def test_a_single_or_constant_value_is_drawn() -> None:
    assert points(Chart("c", [Series("s", [3], [2.0])]))
    assert points(Chart("c", [Series("s", [0, 1], [0.0, 0.0])]))


def test_a_video_is_part_of_the_page_and_the_policy_lets_it_play() -> None:
    shown = page("x", video(b"mp4 bytes", 'a "title" <'))
    assert f'src="data:video/mp4;base64,{base64.b64encode(b"mp4 bytes").decode()}"' in shown
    assert 'title="a &quot;title&quot; &lt;"' in shown
    assert "media-src data:" in shown
