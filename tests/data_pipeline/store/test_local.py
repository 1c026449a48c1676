"""The local store: the contract, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.store import base as storage
from data_pipeline.store import local
from data_pipeline.store.base import StoreError, pause
from data_pipeline.store.files import TEMPORARY, file_sha256
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store, without_secrets
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


def test_what_another_user_left_and_may_not_be_opened_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, opened = LocalStore(tmp_path), os.open
    for name in "abc":
        (tmp_path / f"{TEMPORARY}{name}").write_bytes(b"half")

    def closed(path: Any, *options: Any, **more: Any) -> int:
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *options, **more)

    monkeypatch.setattr(os, "open", closed)
    store.remove_leftovers("")
    assert os.listdir(tmp_path) == [f"{TEMPORARY}b"]


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_names_the_file_and_the_remedy(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    for write in (store.write, store.put_if_absent):
        with pytest.raises(StoreError, match=r"free space and run the same command again.*key"):
            write("key", b"data")
    assert os.listdir(tmp_path) == []


def test_bytes_reach_the_disk_before_their_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a name must not stand for an empty file, nor what was answered for be gone."""
    store, done = LocalStore(tmp_path / "store"), list[str]()
    (tmp_path / "local").write_bytes(b"data")
    fsync = os.fsync

    def flushed(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(path.name if path.is_dir() else f"{path.stat().st_size} bytes of a temporary file")
        fsync(descriptor)

    def named(call: Any) -> Any:
        return lambda *paths: (done.append(f"named {paths[1].name}"), call(*paths))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", named(os.replace))
    monkeypatch.setattr(os, "link", named(os.link))
    for write in (
        lambda: store.write("a/x", b"data"),
        lambda: store.write_file("a/x", tmp_path / "local"),
        lambda: store.put_if_absent("a/y", b"data"),
        lambda: store.read_to_file("a/x", tmp_path / "store" / "a" / "x2"),
    ):
        done.clear()
        write()
        assert [done[0], done[2]] == ["4 bytes of a temporary file", "a"]
        assert done[1] in ("named x", "named y", "named x2")


def test_pauses_double_up_to_ten_seconds_and_are_drawn_from_their_upper_half(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    for failures, longest in ((1, 0.2), (2, 0.4), (3, 0.8), (6, 6.4), (7, 10.0), (30, 10.0), (2000, 10.0)):
        waited.clear()
        for _ in range(200):
            pause(failures)
        assert longest / 2 <= min(waited) < 0.6 * longest
        assert 0.9 * longest < max(waited) <= longest


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/data/a#b?c@d", "/data/a#b?c@d"),  # a folder may be called anything
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/prefix", "s3://bucket/prefix"),
        ("S3://key:secret@bucket/run#1/part?.csv", "S3://bucket/run#1/part?.csv"),  # S3 has no queries
        ("https://host/a?token=secret", "https://host/a"),
        ("https://host/a#secret", "https://host/a"),
        ("https://user:secret@host/a?sig=secret#x", "https://host/a"),
    ],
)
def test_messages_show_a_location_without_its_secrets(location: str, shown: str) -> None:
    assert without_secrets(location) == shown


def test_a_folder_that_cannot_be_listed_does_not_look_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, listed = LocalStore(tmp_path), os.scandir
    store.write("a/x", b"")
    store.write("b/y", b"")
    assert list(store.keys("none/")) == list(store.keys("a/x/")) == []  # nothing is there, or a file

    (tmp_path / "lost+found").mkdir()  # of the file system, at the top of a disk; only root may list it

    def failing(folder: str) -> Any:
        if str(folder).endswith(("/a", "/lost+found")):
            raise OSError(errno.EIO, os.strerror(errno.EIO), folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", failing)
    for prefix in ("", "a/"):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            list(store.keys(prefix))
    assert list(store.keys("b/")) == ["b/y"]
    store.delete("a/x")
    (tmp_path / "a").rmdir()
    assert list(store.keys()) == ["b/y"]


def test_a_disk_that_cannot_be_read_is_named_and_not_the_one_that_is_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(local, "open_regular", lambda path: Failing())
    store = LocalStore(tmp_path / "store")
    for read in (lambda: store.read("a"), lambda: store.read_to_file("a", tmp_path / "copy")):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as failed:
            read()
        assert failed.value.filename == str(tmp_path / "store" / "a")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert not LocalStore(tmp_path).exists("folder")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected
