"""Files that are none are refused without waiting: nobody writes to the FIFOs here, so a blocking open would hang."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.outside.regular import NotRegular, check_regular, open_lock, open_regular, read_regular
from tests.tools.sockets import leave_socket


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "kind"), [(fifo, "a FIFO"), (device, "a device"), (leave_socket, "a socket")])
def test_what_is_no_file_is_refused_by_its_kind(make: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path)
    for refuse in (open_regular, check_regular, lambda place: read_regular(place, 10)):
        with pytest.raises(NotRegular, match=f"is {kind}, not a regular file; replace it"):
            refuse(path)


def test_a_folder_a_link_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"
    with pytest.raises(NotRegular, match="is a link"):
        open_regular(tmp_path / "link", follow=False)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular(tmp_path / "file", 3) == b"abc"
    with pytest.raises(ValueError, match="more than the 2 bytes"):
        read_regular(tmp_path / "file", 2)


def test_a_lock_is_a_file_of_ones_own(tmp_path: Path) -> None:
    os.close(open_lock(tmp_path / "lock", os.O_RDWR | os.O_CREAT))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to("lock")
    with pytest.raises(OSError, match="symbolic links"):
        open_lock(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotRegular):
        open_lock(tmp_path / "fifo")
    if os.geteuid() == 0:
        os.chown(tmp_path / "lock", 65534, 65534)
        with pytest.raises(PermissionError, match="another user"):
            open_lock(tmp_path / "lock")
