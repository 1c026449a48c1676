"""Names that a source may use: splits, and suffixes of videos and manifests."""

from __future__ import annotations

from data_pipeline.raw_video import RAW_SUFFIX

SPLITS = ("train", "val", "test")
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts"),
        *(".flv", ".wmv", ".3gp", ".ogv", ".y4m", ".gif", RAW_SUFFIX),
    }
)
"""Suffixes, in lower case, of the files that count as videos when a folder is searched."""
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
CAPTION_TABLES = tuple(f"captions{suffix}" for suffix in MANIFEST_SUFFIXES)
"""A file of one of these names at the top of a folder of videos holds rows for them."""


def starts_from_a_folder(video: str) -> bool:
    """Whether a video of a manifest is a relative path, which means nothing without the manifest's folder."""
    return "://" not in video and not video.startswith("/")
