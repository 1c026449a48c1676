"""Names what arrives in place of a video: an error page, a picture, an archive, compressed bytes."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

_READ = 512  # bytes that are looked at
_STARTS = (
    (rb"\x1f\x8b", "gzip data"),
    (rb"\x28\xb5\x2f\xfd", "zstd data"),
    (rb"\xfd7zXZ\x00", "xz data"),
    (rb"BZh[1-9]1AY&SY", "bzip2 data"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (rb"Rar!\x1a\x07", "a rar archive"),
    (rb".{257}ustar", "a tar archive"),  # IEEE Std 1003.1, pax: the magic of a header block
    (rb"%PDF-", "a PDF document"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (rb"RIFF.{4}WEBP", "a WebP picture"),
)
_TEXTS = (
    (rb"<(!doctype html|!--|(html|head|body|script|style|title|meta|div|center|h1|p)\b)", "an HTML page"),
    (rb"<[?!a-z]", "an XML document"),
    (rb'\{\s*["}]|\[\s*["{\[]', "a JSON text"),
    (rb"#extm3u", "a playlist"),
)
"""How texts begin, in lower case and after white space and a byte order mark. No video container begins so."""


def what_it_is(path: Path) -> str:
    """What a downloaded file is, by its first bytes; "" when it may be a video."""
    with path.open("rb") as file:
        start = file.read(_READ)
    text = _utf8(start).lstrip().lower()
    for begin, kinds in ((start, _STARTS), (text, _TEXTS)):
        for pattern, name in kinds:
            if re.match(pattern, begin, re.DOTALL):
                return name
    return ""


def _utf8(start: bytes) -> bytes:
    """The bytes without the byte order mark of a text, which says how UTF-16 is to be read."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return start.decode("utf-16", "ignore").encode()
    return start.removeprefix(codecs.BOM_UTF8)
