"""What is decided of a row before its video is opened: its split, and whether its caption will do."""

from __future__ import annotations

import hashlib
import unicodedata

from data_pipeline.source.config import CaptionConfig, SplitConfig


def caption_problem(caption: str | None, config: CaptionConfig) -> tuple[str, dict[str, float | str]] | None:
    """The reason a caption is refused and what was measured, or None when it is fine."""
    text = (caption or "").strip()
    if not text:
        return ("caption_missing", {"characters": 0}) if config.required else None
    if len(text) < config.min_characters:
        return "caption_too_short", {"characters": len(text)}
    if len(text) > config.max_characters:
        return "caption_too_long", {"characters": len(text)}
    kinds = [unicodedata.category(character) for character in text]
    # Control characters and U+FFFD are left behind by text that was decoded with the wrong encoding.
    broken = sum(
        character == "\ufffd" or (kind in ("Cc", "Cs", "Co") and character not in "\n\r\t")
        for character, kind in zip(text, kinds, strict=True)
    )
    if broken:
        return "caption_encoding", {"broken_characters": broken}
    letters = sum(kind[0] in "LM" for kind in kinds) / len(kinds)
    return ("caption_no_text", {"letters": letters}) if letters < config.min_letters else None


def split_of(video: str, given: str, config: SplitConfig) -> str:
    """train, val or test: as the manifest says, else by a hash of the source video's name."""
    if given:
        return given
    share = int.from_bytes(hashlib.sha256(f"split:{video}".encode()).digest()[:8], "big") / 2**64
    if share < config.val:
        return "val"
    return "test" if share < config.val + config.test else "train"
