"""Text of others in TensorBoard: it stands there character by character, loads nothing, and is bounded."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from trainer.telemetry.literal import MOST_TEXT
from trainer.telemetry.tensorboard import TensorBoard

SECRET = "hunter2hunter2"


def page_of(text: str, folder: Path) -> str:
    """What TensorBoard's own page shows of a text."""
    board = TensorBoard(folder)
    board.set_back(0)
    board.text(1, "rollback", text)
    board.close()
    events = EventAccumulator(str(folder)).Reload()
    (tag,) = events.Tags()["tensors"]
    (event,) = events.Tensors(tag)
    return markdown_to_safe_html(event.tensor_proto.string_val[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=https://tracker/x.png onerror=alert(1)>",
        "![picture](https://tracker/x.png)",
        "[words](javascript:alert(1))",
        "```\n![out of the block](https://tracker/x.png)",
        "~~~\n`````\n<img src=https://tracker/x.png>\n```",
        "a\n\n# heading\n\n* item\n\n    code",
        "| a | b |\n| - | - |\n| ![x](https://t/x) | y |",
        "&lt;img src=https://tracker/x.png&gt;",
    ],
)
def test_markup_is_shown_and_does_nothing(text: str, tmp_path: Path) -> None:
    page = page_of(text, tmp_path)
    assert set(re.findall(r"<\s*/?\s*([a-z0-9]+)", page)) <= {"pre", "code"}
    assert text in html.unescape(page)


def test_control_characters_and_secrets_stay_out(tmp_path: Path) -> None:
    page = page_of(f"a\x1b]0;title\x07b \u202e https://h/x?token={SECRET} http://u:{SECRET}@h", tmp_path)
    assert SECRET not in page
    assert not set(page) & {"\x1b", "\x07", "\u202e"}
    assert "\\x1b]0;title\\x07b" in page


def test_a_text_of_ten_megabytes_is_cut_off(tmp_path: Path) -> None:
    page = page_of("words " * 1_700_000, tmp_path)
    assert len(page) < MOST_TEXT + 1000
    assert "characters more)" in page
