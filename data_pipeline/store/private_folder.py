"""The one folder of a user among the temporary files of a machine, which no other user of the machine can open.

Scratch folders, caches, locks, tokens and the sockets of a Ray that is started here lie below this folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def private_folder(name: str = "", base: str = "") -> Path:
    """The folder `BASE/vidtwin-UID`, or the folder `name` in it. It is made when it is missing, with the mode 0700.

    The mode does not depend on the umask. A folder of this user that others may enter is closed.

    Args:
        name: of a folder below; "" for the folder itself.
        base: a folder that others may write to; "" takes the system's folder for temporary files (`TMPDIR`).
    Raises:
        ValueError: something stands at this path that is no folder of this user. Another user may have put it there.
        OSError: the folder cannot be made.
    """
    folder = Path(base or tempfile.gettempdir(), f"vidtwin-{os.getuid()}")
    _make_private(folder)
    if name:
        folder = folder / name
        _make_private(folder)
    return folder


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        folder.chmod(0o700)  # the umask may have taken the user's own rights away
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(
            f"{folder} is no folder of this user, so other users could read what is put there; remove it, or set "
            "TMPDIR to a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)
