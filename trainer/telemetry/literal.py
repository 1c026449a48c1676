"""Texts that quote others, as loggers show them."""

from __future__ import annotations

from data_pipeline.outside.console import visible
from data_pipeline.outside.redaction import redacted

MOST_TEXT = 2**20
"""Characters of a text. The longest configuration of this project has some ten thousand."""


def literal(text: str) -> str:
    """A text as it may be shown: no secrets, no control characters, at most `MOST_TEXT` characters."""
    more = len(text) - MOST_TEXT
    return visible(redacted(text[:MOST_TEXT])) + (f"\n({more} characters more)" if more > 0 else "")
