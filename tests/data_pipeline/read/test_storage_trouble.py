"""Trouble of the storage is no fault of a sample: it is waited for, and then ends the run with one line."""

import errno
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from data_pipeline.read import shard_files
from data_pipeline.read.loader import ClipLoader
from data_pipeline.store.base import ATTEMPTS, StoreError
from tests.data_pipeline.read.loading import batches, config, fingerprint, remote
from tests.tools.web import QuietHandler, serving


def unmount(own: Path) -> Callable[[], object]:
    """The whole dataset is gone; returns what brings it back."""
    away = own.with_name("away")
    own.rename(away)
    return lambda: away.rename(own)


def break_disk(own: Path) -> Callable[[], object]:
    """Reading a shard fails with EIO, which is the kernel's answer for an address where a process has no memory."""
    good = own.with_name("good")
    (own / "shards").rename(good)
    (own / "shards").mkdir()
    for path in good.iterdir():
        (own / "shards" / path.name).symlink_to("/proc/self/mem")

    def mend() -> None:
        shutil.rmtree(own / "shards")
        good.rename(own / "shards")

    return mend


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A local copy of the dataset for one test."""
    return Path(shutil.copytree(root, tmp_path / "own"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Pauses between tries are none; in the last but one of a reading thread, what is in the list happens.

    The last try is spare, because threads share one client of the store: a thread may try once more with the client
    that another one made from the old credentials just before.
    """
    last: list[Callable[[], object]] = []
    counts: Counter[int] = Counter()
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            counts[threading.get_ident()] += 1
            if counts[threading.get_ident()] >= ATTEMPTS - 2 and last:
                last.pop()()

    monkeypatch.setattr("data_pipeline.store.base.time.sleep", sleep)
    return last


@pytest.mark.parametrize("harm", [unmount, break_disk])
def test_trouble_that_passes_costs_neither_a_sample_nor_the_order(
    own: Path, pauses: list[Callable[[], object]], harm: Callable[[Path], Callable[[], object]]
) -> None:
    expected = batches(config(own), 4)
    loader = ClipLoader(config(own))
    running = loader.from_position()
    got = [fingerprint(next(running))]
    pauses.append(harm(own))
    got += [fingerprint(batch) for batch in islice(running, 3)]
    loader.close()
    assert not pauses
    assert got == expected
    assert loader.bad_samples == []


@pytest.mark.parametrize(
    ("harm", "workers", "trouble"),
    [
        (unmount, 0, "No such file or directory.*, and dataset.json is missing as well"),
        (unmount, 1, "No such file or directory.*, and dataset.json is missing as well"),
        (break_disk, 1, r"Input/output error: '\S+'"),
    ],
)
def test_trouble_that_lasts_is_the_storages_in_one_line(
    own: Path,
    pauses: list[Callable[[], object]],
    harm: Callable[[Path], Callable[[], object]],
    workers: int,
    trouble: str,
) -> None:
    loader = ClipLoader(config(own, workers=workers, max_bad_samples=0))
    harm(own)
    with pytest.raises(StoreError) as caught:
        next(loader.from_position())
    loader.close()
    assert re.fullmatch(
        rf"{own}/shards/00000\d-000\.tar: failed 8 times, last: \[Errno \d+\] {trouble}", str(caught.value)
    )
    assert loader.bad_samples == []


def test_a_missing_file_costs_its_samples_only(own: Path, pauses: list[Callable[[], object]]) -> None:
    """The rest of the dataset is there, so it is not waited for either."""
    (own / "shards" / "000000-000.tar").unlink()
    pauses.append(lambda: pytest.fail("waited"))
    loader = ClipLoader(config(own))
    list(islice(loader.from_position(), 3))
    assert {b.shard for b in loader.bad_samples} == {"shards/000000-000.tar"}


class Rotating(QuietHandler):
    """S3, as far as reading needs it, over a folder: signed with another key than the one that holds, it refuses."""

    folder: Path
    holds: str

    def do_GET(self) -> None:
        if f"Credential={self.holds}/" not in self.headers["Authorization"]:
            self._answer(403, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
            return
        data = (self.folder / self.path.split("/", 2)[2]).read_bytes()
        begin, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()  # type: ignore[union-attr]
        part = data[int(begin) : int(end) + 1 if end else None]
        self._answer(206, part, ("Content-Range", f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def rotating(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Credentials in a file, as a service keeps them: sets which key is there, and which one the store takes."""
    file = tmp_path / "credentials"
    handler = type("Handler", (Rotating,), {"folder": root})

    def rotate(here: str, there: str) -> None:
        # The file is replaced whole: every reading thread looks it up between its tries, and half a file names no key.
        new = file.with_name("new")
        new.write_text(f"[default]\naws_access_key_id={here}\naws_secret_access_key=s\n")
        new.replace(file)
        handler.holds = there

    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    with serving(handler) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        yield rotate


def test_credentials_that_expire_are_looked_up_anew(
    root: Path, tmp_path: Path, rotating: Callable[[str, str], None], pauses: list[Callable[[], object]]
) -> None:
    rotating("OLD", "OLD")
    loader = ClipLoader(remote("s3://bucket", tmp_path))
    rotating("OLD", "NEW")
    pauses.append(lambda: rotating("NEW", "NEW"))
    got = [fingerprint(b) for b in islice(loader.from_position(), 3)]
    loader.close()
    assert not pauses
    assert got == batches(config(root), 3)
    assert loader.bad_samples == []


def test_expired_credentials_refuse_a_start_and_end_a_run_as_the_stores_trouble(
    tmp_path: Path, rotating: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "ATTEMPTS", 2)
    rotating("OLD", "OLD")
    loader = ClipLoader(remote("s3://bucket", tmp_path, workers=1, max_bad_samples=0))
    rotating("OLD", "NEW")
    message = (
        r"s3://bucket/shards/00000\d-000\.tar: failed 2 times, last: the store refused \(ExpiredToken: expired\); "
        "check the credentials"
    )
    with pytest.raises(StoreError) as caught:
        next(loader.from_position())
    loader.close()
    assert re.fullmatch(message, str(caught.value))
    with pytest.raises(ValueError, match=r"data\.shards=s3://bucket may not be read: .*ExpiredToken"):
        ClipLoader(remote("s3://bucket", tmp_path))


def test_a_full_disk_under_the_cache_ends_the_run_and_is_named(
    shared_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ClipLoader(remote(shared_uri, tmp_path, max_bad_samples=0))

    def full(path: Path, *words: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(
        StoreError, match=rf"data\.cache_dir={tmp_path}/cache cannot be used: No space left .*; free space"
    ):
        next(loader.from_position())
    loader.close()
    assert loader.bad_samples == []
