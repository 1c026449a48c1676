"""Shared memory, through which data workers hand their batches over: what they need of it, and what there is.

On Linux the tensors of a batch lie in /dev/shm, a file system in memory. In a container it is 64 MB by default.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.read.config import ReadingConfig

FOLDER = Path("/dev/shm")
REMEDY = (
    "give the container more (docker run --shm-size=16g; in Kubernetes an emptyDir with medium: Memory, mounted on "
    f"{FOLDER}), or lower data.workers or data.prefetch"
)
PAGE = 4096


class HandOverFailed(RuntimeError):
    """A data worker has read its batch, and could not hand it over; the message says why and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    @classmethod
    def because(cls, error: Exception) -> HandOverFailed:
        """The error of a worker, in which it is made."""
        size, free = size_and_free()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(
            f"a data worker could not hand its batch over: {error}. {FOLDER}, through which batches go, has "
            f"{free / 1e6:.0f} of {size / 1e6:.0f} MB free, and the worker may have {files} files open. Where "
            f"memory is short, {REMEDY}; where files are, raise `ulimit -n`"
        )


def size_and_free(folder: Path = FOLDER) -> tuple[int, int]:
    """The bytes that a file system has, and those that are free."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def bytes_ahead(config: ReadingConfig, tensors: Iterable[int]) -> int:
    """The most bytes that the batches of one rank take: those that its workers are ahead, and two.

    The two are the batch that training holds and the one on its way to it. A tensor begins on a page of its own.

    Args:
        tensors: bytes of each tensor of a batch of the rank.
    """
    batch = sum(-(-size // PAGE) * PAGE for size in tensors)
    return batch * (config.workers * config.prefetch + 2) if config.workers else 0
