"""The captions of a sample: its `.txt`, and those of a further column `captions` of the manifest.

A manifest (.jsonl or .parquet) may have a column `captions`, a list of texts for each row. The clip's `.json` keeps it
as `extra.captions`, and the `.json` of its latents keeps the clip's `.json` as `clip`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from data_pipeline.dataset.tar import ClipError
from data_pipeline.outside.documents import parse_json

EMPTY = ""
"""The caption that stands for a dropped one, and for the caption of a clip without captions."""
_COLUMN = "captions"


def caption_digest(caption: str) -> str:
    """The key of a caption in a dataset of texts: SHA-256 of its UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(caption.encode()).hexdigest()


def captions_of(description: bytes, caption: bytes) -> tuple[str, ...]:
    """The distinct captions of a latent sample, that of the `.txt` first; `(EMPTY,)` where it has none.

    Args:
        description: the bytes of its `.json`.
        caption: the bytes of its `.txt`.
    Raises:
        ClipError: a caption is not UTF-8, or `extra.captions` is no list of texts.
    """
    try:
        found = [caption.decode()]
        if f'"{_COLUMN}"'.encode() in description:  # most samples have no such key, and are not parsed
            found += _further(_parsed(description))
            for text in found:
                text.encode()  # JSON can hold halves of characters, which are no text
    except UnicodeError as error:
        raise ClipError("has a caption that is not UTF-8") from error
    return tuple(dict.fromkeys(text for text in found if text.strip())) or (EMPTY,)


def _parsed(description: bytes) -> Any:
    try:
        return parse_json(description)
    except ValueError as error:
        raise ClipError(f"has a description that cannot be read: {error}") from error


def _further(description: Any) -> list[str]:
    """The list `clip.extra.captions` of a description; [] where it has none."""
    clip = description.get("clip") if isinstance(description, dict) else None
    extra = clip.get("extra") if isinstance(clip, dict) else None
    captions = extra.get(_COLUMN, []) if isinstance(extra, dict) else []
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ClipError(
            f"has a column {_COLUMN} that is no list of texts; give it as a list in a .jsonl or .parquet manifest, or "
            "give the column another name"
        )
    return captions
