"""The page of samples, read back with Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import save_file

from model.dit_config import Conditioning
from trainer.latents.sample_metadata import SampleMetadata
from trainer.sampling.generate import Wanted
from trainer.sampling.grid import MOST_VIDEOS, Row, grid_page
from trainer.sampling.videos import rows_of


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


def test_videos_stand_in_the_order_of_their_numbers_and_what_was_asked_for_stands_first(tmp_path: Path) -> None:
    """By its name, the hundred-thousandth sample would stand before the one that was made before it."""
    for label, number, name in (
        ("b", 99999, "class0001-99999"),
        ("b", 100000, "class0001-100000"),
        ("a", 0, "class0000-00000"),
        ("c", 1, "class0002-00001"),
    ):
        metadata = SampleMetadata(label=label, number=number, autoencoder="").to_metadata()
        save_file({"structure": torch.zeros(1)}, tmp_path / f"{name}.safetensors", metadata)
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "class0003-00000.mp4").touch()  # whose sample is gone
    assert rows_of(tmp_path, [Wanted("c", 1, "class0002-00001"), Wanted("b", 100000, "class0001-100000")]) == [
        Row("c", ["class0002-00001.mp4"]),
        Row("b", ["class0001-99999.mp4", "class0001-100000.mp4"]),
        Row("a", ["class0000-00000.mp4"]),
    ]


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
