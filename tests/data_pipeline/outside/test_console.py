"""What a terminal obeys is shown and not obeyed. The expected escapes are those of ECMA-48 and Unicode, written out."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.outside.console import Console, guard_consoles, visible, write_over
from launch.exit_status import ends_with_status

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x9b31m", "\\x9b31m"),  # CSI as one character
        ("a\rb\bc\x7f", "a\\rb\\x08c\\x7f"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),  # the rest of the line would be read backwards
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\udc80.mp4", "\\udc80.mp4"),
        ("line\u2028line", "line\\u2028line"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("ü 日本 👩\u200d👧 é", "ü 日本 👩\u200d👧 é"),
    ],
)
def test_control_characters_are_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
    stream = io.StringIO()
    print(text, file=Console(stream))  # type: ignore[type-var]
    assert stream.getvalue() == f"{shown}\n"


def test_a_line_of_progress_alone_goes_over_the_last_one() -> None:
    stream = io.StringIO()
    write_over(Console(stream), "5 \x1b[2J clips", end="\r")
    write_over(stream, "6 clips")
    assert stream.getvalue() == "\r\x1b[K5 \\x1b[2J clips\r\r\x1b[K6 clips"


def test_a_refusal_shows_what_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    @ends_with_status
    def main(argv: object = None) -> int:
        print("a caption: \x1b]0;x\x07")
        raise ValueError("format \x1b[2J is unknown")

    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == "a caption: \\x1b]0;x\\x07\n"
    assert "format \\x1b[2J is unknown" in told.err


def test_tracebacks_and_warnings_are_shown_too() -> None:
    program = (
        "import warnings\n"
        "from data_pipeline.outside.console import guard_consoles\n"
        "guard_consoles(); guard_consoles()\n"
        "warnings.warn('\\x1b[2J')\n"
        "raise RuntimeError('\\x1b]0;x\\x07')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\\x1b[2J") >= 1
    assert "RuntimeError: \\x1b]0;x\\x07" in done.stderr


def test_guarding_twice_is_guarding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    guard_consoles()
    guard_consoles()
    assert isinstance(sys.stdout, Console)
    assert sys.stdout.stream is stream
