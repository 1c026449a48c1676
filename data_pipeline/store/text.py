"""Text files that people write: UTF-8, or refused with the line and the byte that is not."""

from __future__ import annotations

import io
from pathlib import Path

from data_pipeline.outside.regular import open_regular


def read_text(file: Path, name: str = "") -> str:
    """The whole text of a file, every character as it stands there, but each end of a line as a line feed.

    Args:
        file: in UTF-8.
        name: what messages call the file; empty: its path.
    Raises:
        ValueError: this is no regular file, or it is not UTF-8; the message names the file, the line and the byte.
        OSError: the file cannot be read.
    """
    return _decoded(file, name, None)


def read_lines(file: Path) -> list[str]:
    """The lines of a file without their ends, and without the byte order mark that some editors write first.

    A line ends with a line feed, or a carriage return and a line feed. Other characters that a text may have between
    lines, such as a form feed or U+2028, stay in their line, because editors count the lines so.

    Raises: as `read_text`.
    """
    text = _decoded(file, "", "").removeprefix("\ufeff").removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")] if text else []


def _decoded(file: Path, name: str, newline: str | None) -> str:
    try:
        with open_regular(file, named=name) as opened:
            return io.TextIOWrapper(opened, encoding="utf-8", newline=newline).read()
    except UnicodeDecodeError as error:
        raise not_utf8(file, name) from error


def not_utf8(file: Path, name: str = "") -> ValueError:
    """The refusal of a file that could not be decoded. The file is read once more to find the place, line by line."""
    shown = name or str(file)
    with open_regular(file, named=name) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                return ValueError(
                    f"{shown} line {number} holds the byte 0x{byte:02x}, which is not UTF-8; save the file as UTF-8"
                )
    return ValueError(f"{shown} is not UTF-8; save the file as UTF-8")
