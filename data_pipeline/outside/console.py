"""The one place where text leaves for a console: secrets are hidden, and control characters shown as escapes.

A terminal obeys control characters: they can change its title, clear what was printed, or reverse the order of what is
read. Captions, names of files and texts of foreign errors may hold them.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import Any, TextIO

from data_pipeline.outside.redaction import redacted

_OVER = "\r\x1b[K"
"""Back to the beginning of the line, and clear it: what a line of progress begins with."""
_KEPT = frozenset("\n\t")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d\ufeff\u00ad")
"""Format characters that scripts and emoji need, and that move nothing."""


def visible(text: str) -> str:
    """The text with every character that a terminal obeys as an escape such as `\\x1b`; line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in _KEPT or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


class Console:
    """A text stream to a person. Its secrets are hidden and all is made visible first; all else is the stream's own.

    Args:
        stream: standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write the text, visible and without its secrets, and return the number of characters of the given text."""
        self.stream.write(visible(redacted(text)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def write_over(self, text: str, end: str = "") -> None:
        """Write a line of progress over the last one: the only control characters that are obeyed."""
        self.stream.write(_OVER + visible(redacted(text)) + end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> Any:
        return iter(self.stream)


def write_over(stream: Any, text: str, end: str = "") -> None:
    """Write a line of progress over the last one, on a console or on another stream.

    Args:
        stream: to a terminal.
        text: the line.
        end: empty, or a carriage return where the next line that anybody prints is to overwrite this one.
    """
    assert end in ("", "\r")
    (stream if isinstance(stream, Console) else Console(stream)).write_over(text, end)


def guard_consoles() -> None:
    """Let all that this process prints from now on go through `Console`. Calling it again changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Console):
            setattr(sys, name, Console(stream))
