"""A page of samples that play: a row for each class or prompt, a column for each sample. Its videos lie beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from data_pipeline.report.html import Markup, page, table, tag
from data_pipeline.store.counted import counted
from data_pipeline.store.files import atomic_file
from model.dit_config import Conditioning

PAGE_FILE = "index.html"
MOST_VIDEOS = 400
"""A browser that plays more at the same time stutters."""
_TITLES = {Conditioning.class_: "class", Conditioning.text: "prompt", Conditioning.none: "condition"}


@dataclass(frozen=True)
class Row:
    """A row of the grid.

    Attributes:
        title: the class or the prompt; empty without a condition.
        videos: the names of the .mp4 files, relative to the page.
    """

    title: str
    videos: Sequence[str]


def grid_page(rows: Sequence[Row], settings: Mapping[str, object], condition: Conditioning) -> str:
    """The page as an HTML document.

    Args:
        rows: from top to bottom; those without videos are shown, too.
        settings: name -> value, as the page says how the samples were made.
        condition: what the titles of the rows are.
    """
    longest = max((len(row.videos) for row in rows), default=0)
    columns = max(1, min(longest, MOST_VIDEOS // max(1, len(rows))))
    shown = rows[:MOST_VIDEOS]
    total, seen = sum(len(row.videos) for row in rows), sum(len(row.videos[:columns]) for row in shown)
    left = f" {seen} of them are shown here, and the other files lie beside this page." if seen < total else ""
    cells = [
        [row.title or "none", *(video(name, row.title) for name in row.videos[:columns])]
        + [""] * (columns - len(row.videos[:columns]))
        for row in shown
    ]
    facts = ", ".join(f"{name} {value}" for name, value in settings.items())
    return page(
        "VidTwin samples",
        tag("h1", "VidTwin samples"),
        tag("p", f"{counted(total, 'video')} in {counted(len(rows), 'row')}.{left} Made with: {facts}."),
        table([_TITLES[condition], *range(columns)], cells),
        videos_beside=True,
    )


def video(source: str, title: str) -> Markup:
    """A video that plays without sound, again and again.

    Args:
        source: the file relative to the page.
        title: shown where the pointer rests.
    """
    return tag("video", autoplay="", loop="", muted="", playsinline="", src=quote(source), title=title or source)


def write_grid(output: Path, rows: Sequence[Row], settings: Mapping[str, object], condition: Conditioning) -> Path:
    """Write the page into the folder of the videos, whole or not at all, and return its file.

    Args:
        output: the folder of the videos.
        rows, settings, condition: as above.
    Raises:
        StoreError: the disk is full.
    """
    file = output / PAGE_FILE
    with atomic_file(file) as temporary:
        temporary.write_text(grid_page(rows, settings, condition), "utf-8")
    return file
