"""A socket among the files of a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def leave_socket(path: Path) -> None:
    """Put a socket at `path` that nobody listens at.

    The address of a socket has 107 bytes at most, and the temporary folders of tests may be longer. The address is
    therefore named through the open folder.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
