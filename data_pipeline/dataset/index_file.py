"""Whether `index.arrow` is the index that `dataset.json` names. No reader takes a row from it before this is known.

A place of a sample that is wrong by one bit is still a place, and a split that is wrong is still a split: only the
digest of the whole file tells. It is read once for that, at about the speed of the disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.index import INDEX_KEY
from data_pipeline.dataset.index_check import check_rows
from data_pipeline.dataset.kind import Kind
from data_pipeline.store.base import Store, TooLong, at_most
from data_pipeline.store.files import file_sha256


class DamagedIndex(ValueError):
    """`index.arrow` is missing, or it is not the file that `dataset.json` names. The message has the remedy."""


def index_remedy(kind: Kind) -> str:
    """What a user does about an index that is missing or damaged, for messages.

    Args:
        kind: of the dataset.
    """
    return (
        f"run the same command of {kind.made_by} again that made the dataset: it makes the index anew from the commit "
        "records; or copy the file there again"
    )


def damaged_index(store: Store, kind: Kind, fault: str) -> DamagedIndex:
    """The error of an index.

    Args:
        store: of the dataset.
        fault: what is wrong with the file, as the end of a sentence about it.
    """
    return DamagedIndex(
        f"{store.uri(INDEX_KEY)} {fault}, so it is not the index that dataset.json names; {index_remedy(kind)}"
    )


def check_index(path: Path, store: Store, description: DatasetFile) -> None:
    """Compare a local file with what `dataset.json` says of the index: its length, then its SHA-256.

    Args:
        path: the index itself, or a copy of it.
        store: of the dataset, for messages.
    Raises:
        DamagedIndex: the file is missing, or has other bytes.
        OSError: the disk fails.
    """
    entry, kind = description.index, description.kind
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise damaged_index(store, kind, f"has {size} bytes and not {entry.bytes}")
        if file_sha256(path) != entry.sha256:
            raise damaged_index(store, kind, "has another SHA-256")
    except FileNotFoundError:
        raise damaged_index(store, kind, "is missing") from None


@contextmanager
def checked_index(store: Store, description: DatasetFile, scratch: str | None = None) -> Iterator[Path]:
    """A local file with the index, for the time of the block: the index itself, or a copy.

    Args:
        store: of the dataset.
        description: its dataset.json.
        scratch: folder for the copy; None takes the system's.
    Raises:
        DamagedIndex: the index is missing, or has other bytes than `dataset.json` says.
        ValueError: its rows cannot be true, though `dataset.json` names it.
        OSError: the store fails.
    """
    local = store.local_path(INDEX_KEY)
    if local is not None:
        check_index(local, store, description)
        check_rows(local, len(description.shards), store.uri(INDEX_KEY))
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="vidtwin-index-", dir=scratch) as folder:
        path = Path(folder) / INDEX_KEY
        try:
            store.read_to_file(INDEX_KEY, path, at_most(description.index.bytes))
        except FileNotFoundError:
            raise damaged_index(store, description.kind, "is missing") from None
        except TooLong as error:
            raise damaged_index(store, description.kind, str(error)) from None
        check_index(path, store, description)
        check_rows(path, len(description.shards), store.uri(INDEX_KEY))
        yield path
