"""Local files that stay open between reads, because opening one takes longer than reading a latent sample."""

from __future__ import annotations

import os
from collections import OrderedDict

from data_pipeline.outside.regular import opened_descriptor
from data_pipeline.store.base import Store

_MOST = 64
"""Files that one process keeps open for one dataset. With more lanes than that, a file is opened for each read."""


class OpenFiles:
    """Objects of a local store, of which those that were read last stay open.

    A file that another one has replaced by renaming is read on as it was: shards are never written again under their
    name, and the index belongs to the shards that were there.

    Args:
        store: has local paths.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Bytes of an object; shorter only where it ends.

        Raises:
            OSError: it cannot be opened or read. The next call opens it again.
        """
        descriptor = self._descriptors.get(key)
        if descriptor is None:
            descriptor = self._add(key)
        else:
            self._descriptors.move_to_end(key)
        try:
            return os.pread(descriptor, length, offset)
        except OSError:
            os.close(self._descriptors.pop(key))
            raise

    def _add(self, key: str) -> int:
        path = self._store.local_path(key)
        assert path is not None
        descriptor = self._descriptors[key] = opened_descriptor(path)
        if len(self._descriptors) > _MOST:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def __del__(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
