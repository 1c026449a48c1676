"""Which files of a folder belong to a dataset of shards; a leaf, because the command line must load nothing large."""

from __future__ import annotations

TOP = frozenset({"dataset.json", "plan.json", "takedown.json", "index.arrow"})
"""Keys that stand directly in a dataset's folder."""
FOLDERS = ("plan/", "units/", "shards/")
"""What all other keys begin with."""


def is_dataset_key(key: str) -> bool:
    """Whether a key, a path relative to the dataset's folder with `/` between its parts, belongs to the dataset.

    Everything below `FOLDERS` does, also the files that an interrupted build has left there.
    """
    return key in TOP or key.startswith(FOLDERS)
