"""Gates: what keeps a clip or a row out, each with a stable reason and the value it measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class CaptionConfig:
    """Which captions are accepted."""

    required: bool = True  # a row without a caption is rejected (caption_missing)
    min_characters: int = 1  # shorter captions are rejected (caption_too_short)
    max_characters: int = 2000  # longer captions are rejected (caption_too_long)

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise ValueError(
                f"caption.min_characters={self.min_characters} and caption.max_characters={self.max_characters} "
                "must satisfy 0 <= min_characters <= max_characters"
            )


def caption_problem(caption: str | None, config: CaptionConfig) -> tuple[str, dict[str, float | str]] | None:
    """The reason a caption is refused and what was measured, or None when it is fine."""
    text = (caption or "").strip()
    if not text:
        return ("caption_missing", {"characters": 0}) if config.required else None
    if len(text) < config.min_characters:
        return "caption_too_short", {"characters": len(text)}
    if len(text) > config.max_characters:
        return "caption_too_long", {"characters": len(text)}
    return None
