"""The local store: the contract, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.store.base import StoreError
from data_pipeline.store.files import TEMPORARY, file_sha256
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.store.contract import check_store


def test_local_store_keeps_the_contract(tmp_path: Path) -> None:
    check_store(LocalStore(tmp_path / "store"), tmp_path)


def test_a_location_is_refused_with_the_remedy_and_without_its_secret() -> None:
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as refusal:
        open_store("s3://AKIA123:topsecret@bucket/prefix")
    assert "topsecret" not in str(refusal.value)
    for uri in ("gs://bucket/x", "s3://", "http://host/x"):
        with pytest.raises(ValueError, match="use a folder or s3://bucket/prefix"):
            open_store(uri)
    assert open_store("file:///tmp/x").uri("a") == "/tmp/x/a"


def test_a_writer_killed_before_the_rename_leaves_the_old_object(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a/x", b"old")
    code = (
        "import os, signal; from data_pipeline.store import local\n"
        "local.os.replace = local.os.link = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"store = local.LocalStore({str(tmp_path)!r})\n"
    )
    for call in ('store.write("a/x", b"new" * 1000)', 'store.put_if_absent("a/y", b"new")'):
        killed = subprocess.run([sys.executable, "-c", code + call], check=False)
        assert killed.returncode == -9
    assert list(store.keys()) == ["a/x"]
    assert store.read("a/x") == b"old"
    assert len(list((tmp_path / "a").glob(f"{TEMPORARY}*"))) == 2
    store.remove_leftovers("a")
    assert os.listdir(tmp_path / "a") == ["x"]


def test_what_is_being_written_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs may end at the same moment, and each sweeps: before the other's file is flushed, and when it is new."""
    store, fsync, flock = LocalStore(tmp_path), os.fsync, fcntl.flock

    def write(number: int) -> None:
        store.write(f"a/x{number}", b"new")
        assert store.put_if_absent(f"a/y{number}", b"once")
        assert [store.read(f"a/{name}{number}") for name in "xy"] == [b"new", b"once"]

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (store.remove_leftovers("a"), fsync(descriptor)))
        write(1)
    swept: list[int] = []

    def late(file: Any, kind: int) -> None:
        if kind == fcntl.LOCK_EX and len(swept) < 3:
            swept.append(len(list((tmp_path / "a").glob(f"{TEMPORARY}*"))))
            store.remove_leftovers("a")
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    write(2)
    assert swept == [1, 1, 1]
    assert sorted(os.listdir(tmp_path / "a")) == ["x1", "x2", "y1", "y2"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel's own EFBIG stands in for ENOSPC in the message test; here a file-size limit really cuts a write."""
    store = LocalStore(tmp_path / "store")
    store.write("x", b"old")
    code = (
        "import resource, signal; from data_pipeline.store.local import LocalStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"LocalStore({str(tmp_path / 'store')!r}).write('x', b'n' * 5000)\n"
    )
    failed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "File too large" in failed.stderr
    assert store.read("x") == b"old"
    assert os.listdir(tmp_path / "store") == ["x"]


def test_no_space_left_names_the_file_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    for write in (store.write, store.put_if_absent):
        with pytest.raises(StoreError, match=r"free space and run the same command again.*key"):
            write("key", b"data")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert not LocalStore(tmp_path).exists("folder")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected
