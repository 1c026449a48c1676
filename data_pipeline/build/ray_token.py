"""What keeps a Ray that is started here from the other users of the machine: a token, and a closed folder.

Ray's ports on the loopback address can be reached by every user of the machine, and whoever may speak to them can run
code as the user of the build. So Ray is told to ask for a token (`RAY_AUTH_MODE`), which lies in a file of this build
(`RAY_AUTH_TOKEN_PATH`). Without that variable Ray would write one to `~/.ray/auth_token`, readable under a usual umask,
and every later `ray job submit` would send that token to clusters that do not know it (401). Ray makes the folder of a
session for everybody (0777); it is therefore put into a folder that only this user can enter (`RAY_TMPDIR`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from data_pipeline.store.private_folder import private_folder

_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")
_token = secrets.token_hex(32)
"""The token of every Ray that this process starts: Ray reads its token once in the life of a process."""
_folder: Path | None = None
_before: dict[str, str | None] = {}


def refuse_open_ray() -> None:
    """Refuse an environment in which a Ray that is started here would ask nobody for a token. Raises: ValueError."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ValueError(
            f"RAY_AUTH_MODE={mode} lets every user of this machine run code in a Ray that is started here; unset it, "
            "or name a cluster with run.address"
        )


def private_ray() -> None:
    """Give the Ray that this process starts next a token file of its own and a closed folder for its session.

    Both are named to Ray in the environment of this process, which its children inherit. `end_private_ray` takes the
    variables back. A second call changes nothing.

    Raises:
        ValueError: as `refuse_open_ray`, or the folder for Ray's files belongs to another user.
    """
    global _folder
    refuse_open_ray()
    if _folder is not None:
        return
    base = private_folder(base=os.environ.get("RAY_TMPDIR", ""))
    _folder = Path(tempfile.mkdtemp(prefix="ray-token-", dir=base))
    _folder.chmod(0o700)  # the umask may have taken the user's own rights away
    path = _folder / "auth_token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(_token)
    _before.update({name: os.environ.pop(name, None) for name in _VARIABLES})
    os.environ.update(RAY_AUTH_TOKEN_PATH=str(path), RAY_TMPDIR=str(base))


def end_private_ray() -> None:
    """Remove the token file and restore the environment, after Ray has been shut down. Without one nothing happens."""
    global _folder
    if _folder is None:
        return
    shutil.rmtree(_folder, ignore_errors=True)
    _folder = None
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before.clear()
