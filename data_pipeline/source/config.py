"""Settings of the sources: how they are fetched, which captions are accepted, which videos are held out."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.store.base import Retries


@dataclass(kw_only=True)
class SplitConfig:
    """Shares of the source videos that are held out.

    A hash of the video's name decides, so all clips of one video get the same split.
    """

    val: float = 0.01  # share of the source videos for validation; a manifest's own `split` column wins
    test: float = 0.0  # share of the source videos for the final test

    def __post_init__(self) -> None:
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise ValueError(f"split.val={self.val} and split.test={self.test} must leave a share for training")


@dataclass(kw_only=True)
class SourcesConfig:
    """How source videos are fetched. Nothing here changes the bytes of a clip."""

    attempts: int = 8  # tries for one source or one request to a store, with growing pauses
    timeout_s: float = 30.0  # seconds without a byte before a try counts as failed
    deadline_s: float = 1800.0  # seconds for one whole source
    max_bytes: int = 16_000_000_000  # larger sources are quarantined (too_large) before they fill a disk
    redirects: int = 5  # http redirects followed for one source
    # refuse private network addresses and local paths outside the manifest's folder: for manifests from strangers
    untrusted: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.redirects < 0:
            raise ValueError(f"sources.attempts={self.attempts} must be at least 1, sources.redirects not negative")
        if min(self.timeout_s, self.deadline_s, self.max_bytes) <= 0:
            raise ValueError("sources.timeout_s, sources.deadline_s and sources.max_bytes must be positive")

    @property
    def retries(self) -> Retries:
        """How long a request to a store is tried."""
        return Retries(self.attempts, self.timeout_s)


@dataclass(kw_only=True)
class CaptionConfig:
    """Which captions are accepted."""

    required: bool = True  # a row without a caption is rejected (caption_missing)
    min_characters: int = 1  # shorter captions are rejected (caption_too_short)
    max_characters: int = 2000  # longer captions are rejected (caption_too_long)
    min_letters: float = 0.3  # share of characters that are letters of any script; fewer are rejected (caption_no_text)

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise ValueError(
                f"caption.min_characters={self.min_characters} and caption.max_characters={self.max_characters} "
                "must satisfy 0 <= min_characters <= max_characters"
            )
        if not 0.0 <= self.min_letters <= 1.0:
            raise ValueError(f"caption.min_letters={self.min_letters} is a share: it must lie between 0 and 1")
