"""Pictures in memory that two processes share, because a picture of 1920 x 1080 has 6 MB and would be copied twice.

The memory is a file without a name (memfd), which the writer makes longer where pictures need it. The kernel lets no
process make it shorter, so a writer that a hostile file has taken over cannot take memory away from under the reader.
Pictures are uint8 [H, W, 3] and lie in `SLOTS` places, which are used in turns; the reader says when it is done with a
picture.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SLOTS = 3
"""Pictures that may lie in the memory at once, so that neither process waits for each picture of the other."""


class PictureReader:
    """The reader's end, which makes the memory.

    Attributes:
        descriptor: of the memory; the writer needs it.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("pictures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._map: mmap.mmap | None = None

    def picture(self, at: int, height: int, width: int) -> NDArray[np.uint8]:
        """The picture that begins at byte `at`, without a copy; it changes when its place is used again.

        Raises:
            EOFError: the writer has put no such picture there.
            MemoryError: this process can have no more memory.
        """
        end = at + height * width * 3
        if min(at, height - 1, width - 1) < 0 or end > os.fstat(self.descriptor).st_size:
            raise EOFError
        if self._map is None or end > len(self._map):
            self._map = _mapped(self.descriptor)
        return np.frombuffer(self._map, np.uint8, end - at, at).reshape(height, width, 3)

    def close(self) -> None:
        """Let the memory go; pictures that are still in use keep it."""
        self._map = None
        os.close(self.descriptor)


class PictureWriter:
    """The writer's end.

    Args:
        descriptor: of the reader's memory.
        wait: called where all places are in use; it must lower `unread`, or raise.
    Attributes:
        unread: pictures with which the reader is not done; the owner lowers it.
    """

    def __init__(self, descriptor: int, wait: Callable[[], None]) -> None:
        self._descriptor, self._wait = descriptor, wait
        self._map: mmap.mmap | None = None
        self._size = self._next = self.unread = 0

    def put(self, pixels: NDArray[np.uint8]) -> int:
        """Copy a picture into the memory.

        Returns:
            The byte at which it begins.
        Raises:
            MemoryError: there is not so much memory.
        """
        if pixels.size > self._size:
            while self.unread:
                self._wait()
            self._grow(pixels.size)
        while self.unread >= SLOTS:
            self._wait()
        assert self._map is not None
        at = self._next * self._size
        np.copyto(np.frombuffer(self._map, np.uint8, pixels.size, at).reshape(pixels.shape), pixels)
        self._next = (self._next + 1) % SLOTS
        self.unread += 1
        return at

    def _grow(self, size: int) -> None:
        os.ftruncate(self._descriptor, SLOTS * size)
        self._map = _mapped(self._descriptor)
        self._size, self._next = size, 0


def _mapped(descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise
