"""Ranges of bytes of a dataset's shards: in place from a local folder, through the node's cache from a remote store.

There are two kinds of failure. A single shard may be missing, or may have other bytes than dataset.json says; the run
can go on without its samples. Every other failure is one of the storage: the read is repeated as often as a request to
a remote store, and then raises `StoreError`.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from data_pipeline.dataset.description import DATASET_KEY, DatasetFile
from data_pipeline.dataset.index_file import check_index, damaged_index
from data_pipeline.dataset.kind import CLIPS, Kind
from data_pipeline.dataset.records import IndexEntry, ShardEntry
from data_pipeline.dataset.tar import ClipError
from data_pipeline.outside.regular import NotRegular
from data_pipeline.read.config import ReadingConfig
from data_pipeline.read.open_files import OpenFiles
from data_pipeline.read.shard_cache import CachedObject, CacheFull, DigestMismatch, ShardCache
from data_pipeline.store.base import ATTEMPTS, StoreError, pause
from data_pipeline.store.open import open_store

T = TypeVar("T")

log = logging.getLogger(__name__)


class ShardFiles:
    """The objects of one dataset.

    Args:
        config: where the dataset is, and the cache's folder and size.
        kind: what the dataset must consist of.
        named: the setting that names the dataset, for messages.
    Raises:
        ValueError: the place holds no dataset, one of another kind, or one that this user may not read.
        StoreError: the storage fails.
    """

    def __init__(self, config: ReadingConfig, kind: Kind = CLIPS, *, named: str = "data.shards=") -> None:
        self.store = open_store(config.shards)
        self.dataset = self._with_retries(DATASET_KEY, lambda: DatasetFile.load(self.store, kind, named=named))
        self.cache: ShardCache | None = None
        self.uncached_reads = 0
        # Latents and texts are so small that opening their file takes longer than reading them. With a clip it does not
        # matter.
        self._open = None if kind is CLIPS else OpenFiles(self.store)
        if self.store.local_path(DATASET_KEY) is None:
            self.cache = ShardCache(self.store, config.cache_folder, config.cache_bytes)

    def after_fork(self) -> None:
        """Replace connections that a forked child must not share with its parent."""
        self.store = pickle.loads(pickle.dumps(self.store))
        if self.cache:
            self.cache.store = self.store

    def index_path(self) -> Path:
        """The path of a local index.arrow, which is the one that dataset.json names and is sound Arrow.

        A downloaded one is not evicted while this process lives.

        Raises:
            DamagedIndex: the index is missing or damaged; the message names the remedy.
            StoreError: the storage fails.
        """
        local = self.store.local_path(self.dataset.index.name)
        if local is not None:
            self._with_retries(self.dataset.index.name, lambda: check_index(local, self.store, self.dataset))
        return local or self._cached_index()

    def _cached_index(self) -> Path:
        """The local copy of a remote index. The cache has compared its SHA-256. Raises: as `index_path`."""
        assert self.cache is not None
        cache, item = self.cache, _item(self.dataset.index)
        try:
            return self._with_retries(item.key, lambda: cache.hold(item))
        except FileNotFoundError:
            raise damaged_index(self.store, self.dataset.kind, "is missing") from None
        except DigestMismatch as error:
            raise damaged_index(self.store, self.dataset.kind, "has another SHA-256") from error

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes of a shard; shorter only where the shard ends.

        Raises:
            FileNotFoundError: the store has dataset.json, but not this shard.
            DigestMismatch: two downloads had other bytes than dataset.json says.
            ClipError: the local copy cannot be read.
            StoreError: the storage fails, of this node or of the store.
        """
        entry = self.dataset.shards[shard]
        files = self._open
        if self.cache is None and files is not None:
            return self._with_retries(entry.name, lambda: files.read(entry.name, offset, length))
        if self.cache is None:
            return self.read_afresh(shard, offset, length)
        cache = self.cache
        try:
            return self._with_retries(entry.name, lambda: _read_copy(cache, entry, offset, length))
        except CacheFull as full:
            self.uncached_reads += 1
            if self.uncached_reads == 1:
                log.warning("%s; until then samples come one by one from %s, more slowly", full, self.store.uri())
            return self.read_afresh(shard, offset, length)

    def read_afresh(self, shard: int, offset: int, length: int) -> bytes:
        """The same bytes straight from the store, past any local copy. Raises: FileNotFoundError, StoreError."""
        name = self.dataset.shards[shard].name
        return self._with_retries(name, lambda: self.store.read(name, offset, length))

    def discard(self, shard: int) -> None:
        """Remove a local copy that differs from the store, so that the next read downloads it again."""
        if self.cache:
            self.cache.discard(_item(self.dataset.shards[shard]))

    def prefetch(self, shard: int) -> None:
        """Download a shard into the cache, before a worker reads it. Does nothing for a local dataset."""
        if self.cache:
            self.cache.fetch(_item(self.dataset.shards[shard]))

    def _with_retries(self, key: str, read: Callable[[], T]) -> T:
        """What `read` returns. A failure of the storage may pass, so `read` is then repeated after a pause.

        Raises:
            StoreError: the storage failed every time.
            FileNotFoundError: the store has dataset.json, but not this object.
        """
        failures = 0
        while True:
            try:
                return read()
            except (StoreError, CacheFull, DigestMismatch):
                raise
            except NotRegular as error:  # it will be no file at the next try either
                raise StoreError(str(error)) from error
            except OSError as error:
                uri = self.store.uri(key)
                missing = isinstance(error, FileNotFoundError)
                if missing and self._has_dataset():
                    raise
                failures += 1
                trouble = str(error).removeprefix(f"{uri}: ")
                if missing:
                    trouble += ", and dataset.json is missing as well"
                if failures == ATTEMPTS:
                    raise StoreError(f"{uri}: failed {failures} times, last: {trouble}") from error
                if failures == 1:
                    log.warning("%s: %s; trying again", uri, trouble)
                pause(failures)

    def _has_dataset(self) -> bool:
        """Whether dataset.json exists. If not, the whole storage is missing (a mount, a bucket), and not one object."""
        try:
            return self.store.exists(DATASET_KEY)
        except OSError:
            return False


def _read_copy(cache: ShardCache, entry: ShardEntry, offset: int, length: int) -> bytes:
    with cache.open(_item(entry)) as descriptor:
        try:
            return os.pread(descriptor, length, offset)
        except OSError as error:
            raise ClipError(f"has an unreadable copy in data.cache_dir={cache.folder}: {error}") from error


def _item(entry: ShardEntry | IndexEntry) -> CachedObject:
    return CachedObject(entry.name, entry.bytes, entry.sha256)
