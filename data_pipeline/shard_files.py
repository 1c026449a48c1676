"""Ranges of bytes of a dataset's shards: in place from a local folder, through the node's cache from a remote store."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

from data_pipeline.cache import CachedObject, CacheFull, ShardCache
from data_pipeline.data_config import DataConfig
from data_pipeline.sample_table import Manifest, ShardEntry
from data_pipeline.storage import LocalStore, open_store

log = logging.getLogger(__name__)


class ShardFiles:
    """The objects of one dataset.

    Args:
        config: where the dataset is, and the cache's folder and size.
    Raises:
        ValueError: no dataset there.
    """

    def __init__(self, config: DataConfig) -> None:
        self.store = open_store(config.shards)
        self.manifest = Manifest.load(self.store)
        self.cache: ShardCache | None = None
        self.uncached_reads = 0
        if not isinstance(self.store, LocalStore):
            self.cache = ShardCache(self.store, config.cache_folder, config.cache_bytes)

    def after_fork(self) -> None:
        """Replace connections that a forked child must not share with its parent."""
        self.store = pickle.loads(pickle.dumps(self.store))
        if self.cache:
            self.cache.store = self.store

    def index_path(self) -> Path:
        """The local index.arrow; a downloaded one is not evicted while this process lives."""
        if self.cache is None:
            assert isinstance(self.store, LocalStore)
            return self.store.path(self.manifest.index.name)
        return self.cache.hold(_item(self.manifest.index))

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes of a shard; shorter only where the shard ends."""
        entry = self.manifest.shards[shard]
        if self.cache is None:
            return self.store.read(entry.name, offset, length)
        try:
            with self.cache.open(_item(entry)) as descriptor:
                return os.pread(descriptor, length, offset)
        except CacheFull as full:
            self.uncached_reads += 1
            if self.uncached_reads == 1:
                log.warning("%s; until then samples come one by one from %s, more slowly", full, self.store.uri())
            return self.store.read(entry.name, offset, length)

    def read_afresh(self, shard: int, offset: int, length: int) -> bytes:
        """The same bytes straight from the store, past any local copy."""
        return self.store.read(self.manifest.shards[shard].name, offset, length)

    def discard(self, shard: int) -> None:
        """Drop a local copy that differs from the store, so that the next reader downloads it again."""
        if self.cache:
            self.cache.discard(_item(self.manifest.shards[shard]))

    def prefetch(self, shard: int) -> None:
        """Have a shard in the cache before it is read. Nothing to do for a local dataset."""
        if self.cache:
            self.cache.fetch(_item(self.manifest.shards[shard]))


def _item(entry: ShardEntry) -> CachedObject:
    return CachedObject(entry.name, entry.bytes, entry.sha256)
