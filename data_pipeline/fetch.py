"""Named objects of a store as local files: what `VidTwin.from_pretrained("s3://...")` calls.

The model package knows nothing of stores. It finds `fetch` by the location's scheme, among the entry points of
setup.py's group `vidtwin.fetch`; another package may offer another scheme there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.storage import open_store


def fetch(uri: str, names: Sequence[str], folder: Path) -> None:
    """Copy `uri/name`, for each name, to `folder/name`.

    Raises:
        FileNotFoundError: one of them does not exist.
        StoreError: the store stayed unreachable.
    """
    store = open_store(uri)
    for name in names:
        store.read_to_file(name, folder / name)
