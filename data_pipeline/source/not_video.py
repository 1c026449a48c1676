"""Names what arrives in place of a video: an error page, a text, a picture, an archive, compressed bytes."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

from data_pipeline.outside.redaction import redacted
from data_pipeline.raw_video import is_raw

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


_SHOWN = 80  # characters of a plain text
_READABLE = (b"YUV4MPEG2 ", b"GIF87a", b"GIF89a")
"""How the containers begin whose first bytes can all be readable."""


def what_it_is(path: Path) -> str:
    """What a downloaded file is, by its first bytes; "" when it may be a video.

    Raw pictures, which are known by the name, may begin with any bytes. A text is shown with its first words, without
    secrets.
    """
    with path.open("rb") as file:
        start = file.read(_READ)
    if is_raw(path.name) or start.startswith(_READABLE):
        return ""
    text = _utf8(start)
    for begin, kinds in ((start, _STARTS), (text.lstrip().lower(), _TEXTS)):
        for pattern, name in kinds:
            if re.match(pattern, begin, re.DOTALL):
                return name
    return _plain_text(text, whole=len(start) < _READ)


def _utf8(start: bytes) -> bytes:
    """The bytes without the byte order mark of a text, which says how UTF-16 is to be read."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return start.decode("utf-16", "ignore").encode()
    return start.removeprefix(codecs.BOM_UTF8)


def _plain_text(start: bytes, *, whole: bool) -> str:
    """The first words where all of the bytes are UTF-8 text; "" where they are not, as in every video container.

    Args:
        whole: whether these are all bytes, so that the last character is complete.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start, whole)
    except UnicodeDecodeError:
        return ""
    if not text or not all(map(_is_of_texts, text)):
        return ""
    words = "".join(letter for letter in " ".join(redacted(text).split()) if letter.isprintable())
    shown = words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
    return f"plain text: {shown}" if shown else "a blank text"


def _is_of_texts(letter: str) -> bool:
    """Whether a character occurs in texts: what can be seen, white space, and marks such as the writing direction."""
    space = letter.isspace() and letter not in "\x1c\x1d\x1e\x1f"
    return letter.isprintable() or space or unicodedata.category(letter) == "Cf"
