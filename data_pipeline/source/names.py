"""Names that a source may use: splits, and suffixes of videos and manifests. Nothing is imported here."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts"),
        *(".flv", ".wmv", ".3gp", ".ogv", ".y4m", ".gif"),
    }
)
"""Suffixes, in lower case, of the files that count as videos when a folder is searched."""
MEASURED_SUFFIXES = VIDEO_SUFFIXES | {".yuv"}
"""Those of the files that a measurement takes for videos: raw pictures too, whose size is in the file name."""
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
CAPTION_TABLES = tuple(f"captions{suffix}" for suffix in MANIFEST_SUFFIXES)
"""A file of one of these names at the top of a folder of videos holds rows for them."""


def starts_from_a_folder(video: str) -> bool:
    """Whether a video of a manifest is a relative path, which means nothing without the manifest's folder."""
    return "://" not in video and not video.startswith("/")
