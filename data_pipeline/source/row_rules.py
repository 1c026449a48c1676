"""Decides a row's split, and whether its caption is accepted, before the video is opened."""

from __future__ import annotations

import hashlib
import unicodedata

from data_pipeline.source.config import CaptionConfig, SplitConfig


def caption_problem(caption: str | None, config: CaptionConfig) -> tuple[str, dict[str, float | str]] | None:
    """The reason why a caption is refused, with what was measured; None when the caption is accepted."""
    text = (caption or "").strip()
    if not text:
        return ("caption_missing", {"characters": 0}) if config.required else None
    if len(text) < config.min_characters:
        return "caption_too_short", {"characters": len(text)}
    if len(text) > config.max_characters:
        return "caption_too_long", {"characters": len(text)}
    kinds = [unicodedata.category(character) for character in text]
    # Text that was decoded with a wrong encoding contains control characters or U+FFFD.
    broken = sum(
        character == "\ufffd" or (kind in ("Cc", "Cs", "Co") and character not in "\n\r\t")
        for character, kind in zip(text, kinds, strict=True)
    )
    if broken:
        return "caption_encoding", {"broken_characters": broken}
    letters = sum(kind[0] in "LM" for kind in kinds) / len(kinds)
    return ("caption_no_text", {"letters": letters}) if letters < config.min_letters else None


def split_of(video: str, given: str, config: SplitConfig) -> str:
    """One of `SPLITS`: the manifest's own, or else the one that a hash of the source video's name gives."""
    if given:
        return given
    share = int.from_bytes(hashlib.sha256(f"split:{video}".encode()).digest()[:8], "big") / 2**64
    if share < config.val:
        return "val"
    return "test" if share < config.val + config.test else "train"
