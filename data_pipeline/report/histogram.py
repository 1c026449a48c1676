"""A histogram as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_pipeline.report.html import COLOURS, Markup, tag, ticks


@dataclass
class HistogramChart:
    """Bars over bins. With `log` the bins have equal ratios, and the axis is logarithmic."""

    title: str
    edges: Sequence[float]  # one more than counts
    counts: Sequence[int]
    note: str = ""
    log: bool = False
    size: tuple[int, int] = field(default=(520, 240))

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"histogram {self.title!r}: {len(self.counts)} counts need one edge more")

    def render(self) -> Markup:
        """The chart as a figure. A bar shows its bin and count when the mouse is on it."""
        width, height = self.size
        left, right, top, bottom = 58, width - 14, 34, height - 30
        low, high = self._place(self.edges[0]), self._place(self.edges[-1])
        across = (right - left) / (high - low)
        most = max(self.counts) or 1
        up = (bottom - top) / most
        parts = [
            tag("title", self.title),
            tag("text", self.title, x=8, y=18, font_size=14, font_weight=600, fill="#1d2433"),
        ]
        for count in ticks(0, most, 4):
            if count == int(count):
                y = f"{bottom - count * up:.1f}"
                parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, stroke="#dde2ea"))
                parts.append(tag("text", f"{count:,.0f}", x=left - 6, y=y, font_size=11, fill="#5b6577",
                                 text_anchor="end", dominant_baseline="middle"))  # fmt: skip
        for k, count in enumerate(self.counts):
            begin, end = (left + (self._place(edge) - low) * across for edge in self.edges[k : k + 2])
            if count:
                title = f"{self.edges[k]:.4g} to {self.edges[k + 1]:.4g}: {count:,}"
                parts.append(tag("rect", tag("title", title), x=f"{begin + 0.5:.1f}", y=f"{bottom - count * up:.1f}",
                                 width=f"{max(1.0, end - begin - 1):.1f}", height=f"{count * up:.1f}",
                                 fill=COLOURS[0]))  # fmt: skip
        for place in ticks(low, high, 6):
            label = f"{10**place:,.3g}" if self.log else f"{place:g}"
            parts.append(tag("text", label, x=f"{left + (place - low) * across:.1f}", y=bottom + 16, font_size=11,
                             fill="#5b6577", text_anchor="middle"))  # fmt: skip
        parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, stroke="#9aa4b5"))
        svg = tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", font_family="inherit")
        return tag("figure", svg, tag("figcaption", self.note))

    def _place(self, value: float) -> float:
        return math.log10(value) if self.log else value
