"""Names what arrives in place of a video: an error page, an archive, compressed bytes."""

from __future__ import annotations

from pathlib import Path

_STARTS = (
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"%PDF-", "a PDF document"),
)
_TEXTS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<head", "an HTML page"),
    (b"<body", "an HTML page"),
    (b"<!--", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<error", "an XML document"),
    (b'{"', "a JSON text"),
    (b"{\n", "a JSON text"),
    (b"[{", "a JSON text"),
)
"""How texts begin, in lower case and after white space and a byte order mark. No video container begins so."""


def what_it_is(path: Path) -> str:
    """What a downloaded file is, by its first bytes; "" when it may be a video."""
    with path.open("rb") as file:
        start = file.read(512)
    for magic, name in _STARTS:
        if start.startswith(magic):
            return name
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((name for begin, name in _TEXTS if text.startswith(begin)), "")
