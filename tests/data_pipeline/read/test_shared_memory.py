"""A batch that a worker cannot hand over is an error in its place, with the cause; what shared memory is needed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.read.shared_memory import HandOverFailed
from data_pipeline.read.worker_pool import WorkerPool
from tests.data_pipeline.read.loading import config

ROOT = Path(__file__).parents[3]


def pool(read: Callable[[int], Any], on_start: Callable[[], None] = lambda: None) -> WorkerPool[Any]:
    """One worker. A result that nobody hands over would be waited for without end."""
    return WorkerPool(
        read, range(8), workers=1, prefetch=2, timeout_s=0, pin_memory=False, on_start=on_start, while_waiting=None
    )


def small_shared_memory() -> None:
    """No file of the worker may grow beyond 100 kB, neither those in /dev/shm."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def no_more_files() -> None:
    """Every file that the worker may open is open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    with suppress(OSError):  # the one after the last
        while True:
            os.open("/dev/null", os.O_RDONLY)


def read_tensor(item: int) -> torch.Tensor:
    return torch.full((50_000 if item < 3 else 200_000,), item, dtype=torch.uint8)


def test_a_batch_that_does_not_fit_into_shared_memory_is_an_error_in_its_place() -> None:
    running = pool(read_tensor, small_shared_memory)
    try:
        assert [int(next(running)[0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(HandOverFailed, match=r"(?s)File too large.*/dev/shm, .* MB free.*--shm-size=.*workers"):
            next(running)
    finally:
        running.close()


@pytest.mark.parametrize(
    ("read", "on_start", "cause"),
    [
        (lambda item: threading.Lock(), lambda: None, "cannot pickle '_thread.lock' object"),
        (read_tensor, no_more_files, "Too many open files"),
    ],
)
def test_whatever_keeps_a_batch_back_is_said(
    read: Callable[[int], Any], on_start: Callable[[], None], cause: str
) -> None:
    running = pool(read, on_start)
    try:
        with pytest.raises(HandOverFailed, match=cause):
            next(running)
    finally:
        running.close()


# In a mount namespace of its own: its /dev/shm is of this test alone.
AHEAD = """
import os, subprocess, sys, time
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)
from data_pipeline.read.loader import ClipLoader
from tests.data_pipeline.read.loading import config
loader = ClipLoader(config(Path(sys.argv[1]), workers=2, prefetch=3))
batches = loader.from_position()
held = next(batches)
def used():
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize
seen, end = used(), time.monotonic() + 20
while seen < int(sys.argv[2]) and time.monotonic() < end:
    time.sleep(0.02)
    seen = used()
print(seen, loader.shared_bytes)
loader.close()
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_the_batches_ahead_take_what_is_estimated(root: Path) -> None:
    """Six batches are ahead and one is held, and one more may be on its way."""
    settings = config(root, workers=2, prefetch=3)
    pixels = settings.global_batch * 3 * settings.frames * settings.image_size**2
    batch = -(-pixels // 4096) * 4096 + 4096  # pixels and the rows of the index, each on pages of its own
    command = ["unshare", "--mount", sys.executable, "-c", AHEAD, root, str(7 * batch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    seen, estimated = map(int, done.stdout.split()[-2:])
    assert 7 * batch <= seen <= estimated == 8 * batch
