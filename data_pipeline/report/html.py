"""Building blocks of an HTML page. Every function takes plain text, escapes it, and returns safe markup.

A page contains its style, its curves (SVG) and its pictures (data URIs). It has no script and loads nothing from
outside; only videos may lie beside it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from data_pipeline.outside.redaction import redacted

STYLE = """
:root { color-scheme: light; --ink: #1d2433; --soft: #5b6577; --line: #dde2ea; --wash: #f5f7fa;
        --good: #12703f; --bad: #b3261e; --accent: #2457a6; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 6px 0 12px; max-width: 78ch; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 22px 0 8px; }
.card { background: var(--wash); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 24px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card .good { color: var(--good); } .card .bad { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
td.n, th.n { text-align: right; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
      font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(470px, 1fr)); gap: 18px; }
figure { margin: 0; }
figcaption { font-size: 13.5px; color: var(--soft); margin: 3px 0 0; }
svg { width: 100%; height: auto; display: block; }
.strips figure { margin: 0 0 18px; }
.strips img { width: 100%; display: block; border-radius: 6px; background: var(--wash); }
.heads { display: grid; font-weight: 600; font-size: 13.5px; margin-bottom: 4px; }
video { display: block; max-width: 100%; min-width: 96px; border-radius: 4px; background: var(--wash); }
summary { cursor: pointer; color: var(--accent); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px 14px; margin: 10px 0; }
.sheet figure { overflow-wrap: anywhere; }
.sheet img { max-width: 100%; max-height: 112px; display: block; border-radius: 4px; background: var(--wash); }
.row { display: flex; flex-wrap: wrap; gap: 12px; margin: 0 0 20px; }
.row figure { width: 224px; overflow-wrap: anywhere; }
.row video { width: 224px; display: block; border-radius: 4px; background: var(--wash); }
.sheet .none { height: 112px; padding: 10px 12px; border-radius: 4px; background: var(--wash); color: var(--soft); }
"""


class Markup(str):
    """Text that is already safe HTML. The functions here escape every other value."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Any value as markup: `Markup` unchanged, None as an en dash, anything else escaped."""
    if isinstance(value, Markup):
        return value
    return Markup("–") if value is None else Markup(escape(redacted(str(value))))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Children and attribute values are escaped; names like `class_` lose their trailing underscore."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*parts: object) -> Markup:
    """Parts one after another, each escaped unless it is markup."""
    return Markup("".join(text(part) for part in parts))


def table(head: Sequence[object], rows: Sequence[Sequence[object]], numeric: Sequence[int] = ()) -> Markup:
    """A table. The columns whose numbers are in `numeric` are aligned right.

    Raises:
        ValueError: a row has another number of cells than the head.
    """
    ragged = [row for row in rows if len(row) != len(head)]
    if ragged:
        raise ValueError(f"table row {list(ragged[0])} does not have {len(head)} cells")

    def cells(kind: str, row: Sequence[object]) -> Markup:
        return join(*(tag(kind, cell, class_="n") if i in numeric else tag(kind, cell) for i, cell in enumerate(row)))

    body = join(*(tag("tr", cells("td", row)) for row in rows))
    return tag("div", tag("table", tag("thead", tag("tr", cells("th", head))), tag("tbody", body)), class_="scroll")


def card(title: str, value: str, note: str = "", verdict: bool | None = None) -> Markup:
    """One headline number. `verdict` colours it: True good, False bad, None neither."""
    shade = "" if verdict is None else ("good" if verdict else "bad")
    return tag(
        "div", tag("span", title, class_="soft"), tag("b", value, class_=shade), tag("span", note, class_="soft"),
        class_="card",
    )  # fmt: skip


def image(data: bytes, media_type: str, alt: str) -> Markup:
    """A picture, whose bytes are part of the page."""
    source = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
    return Markup(f'<img src="{source}" alt="{escape(redacted(alt))}">')


def video(data: bytes, title: str) -> Markup:
    """A silent mp4 that plays in a loop, whose bytes are part of the page."""
    source = f"data:video/mp4;base64,{base64.b64encode(data).decode('ascii')}"
    return Markup(
        f'<video src="{source}" title="{escape(redacted(title))}" autoplay loop muted playsinline controls></video>'
    )


def fold(title: str, *children: object) -> Markup:
    """A part that opens on a click."""
    return tag("details", tag("summary", title), *children)


def section(title: str, *children: object) -> Markup:
    """A section with a heading."""
    return tag("section", tag("h2", title), *children)


def page(title: str, *sections: object, videos_beside: bool = False) -> str:
    """The whole document.

    Args:
        videos_beside: the page plays files that lie beside it, on a disk or on the same web server.
    """
    media = "media-src 'self' file:" if videos_beside else "media-src data:"
    policy = f"default-src 'none'; img-src data:; {media}; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(redacted(title))}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{join(*sections)}</main></body></html>\n"
    )


COLOURS = ("#2457a6", "#c2571a", "#12703f", "#8a3ffc")


@dataclass
class Series:
    """One line of a chart. It has gaps at values that are None or not finite."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]


@dataclass
class Chart:
    """A line chart over training steps."""

    title: str
    series: Sequence[Series]
    note: str = ""
    shade_from: float | None = None  # x from which the background is tinted
    shade_label: str = ""
    log: bool = False  # a logarithmic axis; the line has gaps at values that are not positive
    size: tuple[int, int] = field(default=(520, 270))

    def render(self) -> Markup:
        """The chart as a figure with inline SVG."""
        if not self._points():
            empty = tag("p", "no values were recorded", class_="soft")
            return tag("figure", tag("strong", self.title), empty, tag("figcaption", self.note))
        return tag("figure", self.svg(font_family="inherit"), tag("figcaption", self.note))

    def svg(self, **attributes: object) -> Markup:
        """The chart as an SVG element without its note.

        Args:
            attributes: further attributes of the element, for example its place in a drawing of several charts.
        Raises:
            ValueError: no series has a value that can be drawn.
        """
        points = self._points()
        if not points:
            raise ValueError(f"chart {self.title!r}: no values were recorded")
        width, height = self.size
        box = _Box(points, left=58, right=width - 14, top=40, bottom=height - 30)
        parts = [
            tag("title", self.title),
            tag("text", self.title, x=8, y=18, font_size=14, font_weight=600, fill="#1d2433"),
            *self._shade(box),
            *_axes(box, self.log),
        ]
        for line, colour in zip(self.series, COLOURS, strict=False):
            for path in _paths(box, line.steps, [self._scaled(value) for value in line.values]):
                parts.append(tag("path", d=path, fill="none", stroke=colour, stroke_width=1.7, stroke_linejoin="round"))
        parts += self._legend(width)
        return tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", **attributes)

    def _points(self) -> list[tuple[float, float]]:
        """Step and height of every value that can be drawn."""
        scaled = (
            (step, self._scaled(value))
            for line in self.series
            for step, value in zip(line.steps, line.values, strict=True)
        )
        return [(step, height) for step, height in scaled if height is not None]

    def _scaled(self, value: float | None) -> float | None:
        if value is None or not math.isfinite(value) or (self.log and value <= 0):
            return None
        return math.log10(value) if self.log else value

    def _shade(self, box: _Box) -> list[Markup]:
        if self.shade_from is None or self.shade_from >= box.x1:
            return []
        x = box.x(max(self.shade_from, box.x0))
        wash = tag("rect", x=f"{x:.1f}", y=box.top, width=f"{box.right - x:.1f}", height=box.bottom - box.top,
                   fill="#fdf1e7")  # fmt: skip
        note = tag("text", self.shade_label, x=f"{x + 4:.1f}", y=box.top - 5, font_size=11, fill="#8a4a1c")
        return [wash, note]

    def _legend(self, width: int) -> list[Markup]:
        if len(self.series) < 2:
            return []
        parts: list[Markup] = []
        x = width - 14.0
        for line, colour in reversed(list(zip(self.series, COLOURS, strict=False))):
            x -= 7.0 * len(line.name) + 22
            parts.append(tag("rect", x=x, y=11, width=12, height=4, fill=colour))
            parts.append(tag("text", line.name, x=x + 16, y=18, font_size=12, fill="#5b6577"))
        return parts


class _Box:
    """Maps data to the plot rectangle."""

    def __init__(self, points: Sequence[tuple[float, float]], left: int, right: int, top: int, bottom: int) -> None:
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.x0, self.x1 = min(x for x, _ in points), max(x for x, _ in points)
        low, high = min(y for _, y in points), max(y for _, y in points)
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        self.y0, self.y1 = low - margin, high + margin

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.x0) / ((self.x1 - self.x0) or 1.0)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.y0) / (self.y1 - self.y0)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high]; their distance is 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _axes(box: _Box, log: bool) -> list[Markup]:
    parts = []
    decades = [float(power) for power in range(math.ceil(box.y0), math.floor(box.y1) + 1)] if log else []
    for value in decades if len(decades) > 1 else ticks(box.y0, box.y1):
        y = f"{box.y(value):.1f}"
        label = f"{10**value:,.6g}" if log else f"{value:g}"
        parts.append(tag("line", x1=box.left, x2=box.right, y1=y, y2=y, stroke="#dde2ea"))
        parts.append(tag("text", label, x=box.left - 6, y=y, font_size=11, fill="#5b6577", text_anchor="end",
                         dominant_baseline="middle"))  # fmt: skip
    for value in ticks(box.x0, box.x1):
        parts.append(tag("text", f"{value:g}", x=f"{box.x(value):.1f}", y=box.bottom + 16, font_size=11,
                         fill="#5b6577", text_anchor="middle"))  # fmt: skip
    parts.append(tag("line", x1=box.left, x2=box.right, y1=box.bottom, y2=box.bottom, stroke="#9aa4b5"))
    return parts


def _paths(box: _Box, steps: Sequence[float], values: Sequence[float | None]) -> list[str]:
    """SVG path data, one path for each run of values without a gap."""
    runs: list[list[str]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            runs[-1].append(f"{box.x(step):.1f},{box.y(value):.1f}")
        elif runs[-1]:
            runs.append([])
    return ["M" + " L".join(run if len(run) > 1 else run * 2) for run in runs if run]
