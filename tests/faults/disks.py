"""File systems of a test's own: one that is small, and one that the kernel makes read-only while files are open."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def needs_root(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that mounts."""
    reason = "needs root to mount a file system"
    return pytest.mark.root(pytest.mark.skipif(os.geteuid() != 0, reason=reason)(test))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory with so little space."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def ext4_disk(folder: Path, image: Path, megabytes: int) -> Iterator[Path]:
    """An ext4 file system in a file, mounted; `make_read_only` and `make_writable` change it.

    Args:
        folder: a new folder, where it is mounted.
        image: a new file that holds it.
        megabytes: its size.
    """
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no file: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def make_read_only(folder: Path) -> None:
    """As after an error of the device: writing fails from now on, also in files that are open (EROFS)."""
    subprocess.run(["mount", "-o", "remount,abort", folder], check=True)


def make_writable(folder: Path, image: Path) -> None:
    """What an administrator does then: unmount, repair, mount."""
    subprocess.run(["umount", folder], check=True)
    subprocess.run(["fsck.ext4", "-p", image], check=False)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
