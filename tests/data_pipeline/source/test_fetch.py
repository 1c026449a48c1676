"""Fetching sources: local files, S3 and web servers that redirect, break, lie, drip or point inside the network."""

from __future__ import annotations

import errno
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline.source import connection, http
from data_pipeline.source import fetch as fetching
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.deadline import Deadline, Overdue
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.source.web_server import DATA, WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Fetch one source with some limits; a problem must leave no file behind."""
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    folder = tmp_path / "scratch"
    folder.mkdir()

    def get(video: str, base: str = "/nowhere", **limits: object) -> bytes:
        config = SourcesConfig(**({"attempts": 3, "timeout_s": 60.0} | limits))  # type: ignore[arg-type]
        try:
            path = Sources(base, config).fetch(video, folder)
        except SourceProblem:
            assert os.listdir(folder) == []
            raise
        data = path.read_bytes()
        if path.parent == folder:
            path.unlink()
        return data

    return get


def problem(fetch: Callable[..., bytes], video: str, **rest: object) -> str:
    with pytest.raises(SourceProblem) as found:
        fetch(video, **rest)
    return found.value.error


def test_local_files_are_used_in_place(fetch: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "none.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    base = str(tmp_path)
    assert Sources(base, SourcesConfig()).fetch("a.mp4", tmp_path / "scratch") == tmp_path / "a.mp4"
    assert fetch(str(tmp_path / "a.mp4"), base="/elsewhere") == b"video"
    assert problem(fetch, "b.mp4", base=base) == "missing"
    assert problem(fetch, "x" * 5000, base=base) == "missing"
    assert problem(fetch, "scratch", base=base) == "not_a_file"
    assert problem(fetch, "pipe.mp4", base=base) == "not_a_file", "opening it would wait for ever"
    assert problem(fetch, "none.mp4", base=base) == "empty"
    assert problem(fetch, "a.mp4", base=base, max_bytes=4) == "too_large"
    assert fetch("a.mp4", base=base, max_bytes=5) == b"video"


def test_untrusted_manifests_stay_in_their_folder(fetch: Callable[..., bytes], tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (inside / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (inside / "ok.mp4").write_bytes(b"ok")
    for video in ("../secret.mp4", str(tmp_path / "secret.mp4"), "link.mp4"):
        assert fetch(video, base=str(inside)) == b"secret"
        assert problem(fetch, video, base=str(inside), untrusted=True) == "forbidden"
    assert fetch("ok.mp4", base=str(inside), untrusted=True) == b"ok"


def test_a_download_goes_on_where_it_broke(fetch: Callable[..., bytes], web: WebServer) -> None:
    assert fetch(f"{web.url}/broken/a b.mp4?x=1") == DATA
    assert web.ranges == [None, "bytes=170666-", "bytes=227555-"]
    web.ranges.clear()
    assert fetch(f"{web.url}/rangeless/x") == DATA, "a server without ranges is asked from the start"
    assert web.ranges == [None, "bytes=170666-", "bytes=170666-"]


def test_whoever_goes_on_is_not_given_up(fetch: Callable[..., bytes], web: WebServer) -> None:
    """Twenty breaks, each after some bytes, are no three failures in a row. And a weak ETag proves no sameness."""
    assert fetch(f"{web.url}/crumbs/x") == DATA
    assert len(web.requests) == 20
    assert {headers.get("If-Range") for headers in web.headers[1:]} == {"yesterday"}
    assert {headers["Accept-Encoding"] for headers in web.headers} == {"identity"}, "other bytes than the file's"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_a_full_disk_here_is_no_fault_of_the_source(number: int, web: WebServer) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

    progress = http._Progress(f"{web.url}/whole/x")
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        http._download(Full(), progress, SourcesConfig(), Deadline.after(60.0))
    assert caught.value.errno == number
    assert len(web.requests) == 1


def test_a_range_that_was_not_asked_for_is_not_taken(fetch: Callable[..., bytes], web: WebServer) -> None:
    assert problem(fetch, f"{web.url}/shifted/x") == "unreachable"
    assert fetch(f"{web.url}/shrunk/x") == b"\0short", "nothing of the longer one is left behind it"


def test_a_file_that_changed_meanwhile_is_not_glued_together(fetch: Callable[..., bytes], web: WebServer) -> None:
    assert fetch(f"{web.url}/changed/x") == DATA[::-1]
    assert fetch(f"{web.url}/replaced/x") == DATA[::-1]


def test_passing_failures_are_waited_out_and_lasting_ones_are_named(
    fetch: Callable[..., bytes], web: WebServer
) -> None:
    assert fetch(f"{web.url}/flaky/x") == DATA
    assert problem(fetch, f"{web.url}/status/503") == "unreachable"
    assert problem(fetch, f"{web.url}/status/404") == "missing"
    assert problem(fetch, f"{web.url}/status/410") == "missing"
    assert problem(fetch, f"{web.url}/status/403") == "forbidden"
    assert problem(fetch, f"{web.url}/status/204") == "forbidden", "an answer that is neither the file nor a part of it"
    assert problem(fetch, f"{web.url}/status/302") == "unreachable", "a redirect that leads nowhere"
    assert problem(fetch, f"{web.url}/status/429", attempts=99, deadline_s=3.0) == "timeout"
    assert problem(fetch, f"{web.url}/empty/x") == "empty"
    assert problem(fetch, "http://127.0.0.1:9/x") == "unreachable"
    assert problem(fetch, "http://no-such-host.invalid/x") == "unreachable"
    assert problem(fetch, "http://[bad/x") == "missing"
    assert web.requests.count("/status/503") == 3
    assert web.requests.count("/status/404") == 1, "asking again would not help"


def test_redirects_are_followed_within_limits(fetch: Callable[..., bytes], web: WebServer) -> None:
    assert fetch(f"{web.url}/redirect/ok") == DATA
    assert fetch(f"{web.url}/hops/1/x") == DATA, "each is relative to the one before it"
    assert problem(fetch, f"{web.url}/redirect/loop", redirects=4) == "redirected"
    assert web.requests.count("/redirect/loop") == 5
    assert problem(fetch, f"{web.url}/redirect/ok", redirects=0) == "redirected"
    assert problem(fetch, f"{web.url}/redirect/file") == "forbidden"
    assert problem(fetch, f"{web.url}/redirect/user") == "forbidden"


def test_endless_and_large_bodies_are_stopped(fetch: Callable[..., bytes], web: WebServer) -> None:
    assert problem(fetch, f"{web.url}/whole/x", max_bytes=len(DATA) - 1) == "too_large"
    assert fetch(f"{web.url}/whole/x", max_bytes=len(DATA)) == DATA
    assert problem(fetch, f"{web.url}/announced/x", max_bytes=10**12 - 1) == "too_large"
    assert problem(fetch, f"{web.url}/endless/x", max_bytes=50_000) == "too_large"
    assert problem(fetch, f"{web.url}/endless/x", deadline_s=0.3) == "timeout"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *[
            ("127.0.0.1", False),
            ("10.1.2.3", False),
            ("192.168.0.1", False),
            ("169.254.169.254", False),
            ("::1", False),
        ],
        *[
            ("fd00::1", False),
            ("::ffff:10.0.0.1", False),
            ("100.64.0.1", False),
            ("224.0.0.1", False),
            ("::ffff:224.0.0.1", False),
            ("ff0e::1", False),
            ("0.0.0.0", False),
        ],
        *[("8.8.8.8", True), ("2606:4700::1111", True)],
    ],
)
def test_private_addresses_are_known(address: str, public: bool) -> None:
    assert connection.is_public(address) is public


def test_private_addresses_are_refused_by_a_switch_before_anything_is_sent(
    fetch: Callable[..., bytes], web: WebServer
) -> None:
    assert problem(fetch, f"{web.url}/whole/x", untrusted=True) == "forbidden"
    assert problem(fetch, f"http://localhost:{web.url.rpartition(':')[2]}/x", untrusted=True) == "forbidden"
    assert web.requests == []


@pytest.mark.parametrize(
    ("video", "suffix"),
    [
        ("http://host/a.mp4?name=x.exe", ".mp4"),
        ("http://host/a.webm#t=1.5", ".webm"),
        ("s3://bucket/a.tar.gz", ".gz"),
        ("http://host/a", ""),
        ("http://host/a.toolong", ""),
        ("http://host/a.mp 4", ""),
        ("http://host/a.", ""),
    ],
)
def test_a_download_has_the_suffix_of_its_source_when_that_is_harmless(
    video: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("data_pipeline.source.fetch.download", lambda video, target, config: asked.append(target))
    monkeypatch.setattr(Sources, "_from_s3", lambda self, video, target, most: asked.append(target))
    Sources("/nowhere", SourcesConfig()).fetch(video, tmp_path)
    assert re.fullmatch(rf"source-[0-9a-f]{{8}}{re.escape(suffix)}", asked[0].name)


def test_an_object_is_measured_before_it_is_fetched(
    fetch: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder plays the bucket."""

    class Bucket(LocalStore):
        def read_to_file(self, key: str, path: str | Path, arrived: object = None) -> int:
            return super().read_to_file(key, path)

    bucket = Bucket(tmp_path / "bucket")
    bucket.write("videos/a b.mp4", DATA)
    bucket.write("empty.mp4", b"")
    monkeypatch.setattr("data_pipeline.source.fetch.open_bucket", lambda name, _, **__: {"bucket": bucket}[name])
    assert fetch("s3://bucket/videos/a b.mp4", max_bytes=len(DATA)) == DATA
    assert fetch("a b.mp4", base="s3://bucket/videos") == DATA
    assert problem(fetch, "s3://bucket/none.mp4") == "missing"
    monkeypatch.setattr(bucket, "read_to_file", lambda *_: pytest.fail("fetched"))
    assert problem(fetch, "s3://bucket/videos/a b.mp4", max_bytes=len(DATA) - 1) == "too_large"
    assert problem(fetch, "s3://bucket/empty.mp4") == "empty"


@pytest.mark.s3
def test_objects_come_from_a_real_gateway(fetch: Callable[..., bytes], s3_uri: str) -> None:
    store = open_store(s3_uri)
    store.write("videos/a b.mp4", DATA)
    store.write("videos/empty.mp4", b"")
    assert fetch(f"{s3_uri}/videos/a b.mp4") == DATA
    assert fetch("videos/a b.mp4", base=s3_uri) == DATA, "relative to a manifest on S3"
    assert problem(fetch, f"{s3_uri}/videos/nothing.mp4") == "missing"
    assert problem(fetch, f"{s3_uri}/videos/empty.mp4") == "empty"
    assert problem(fetch, f"{s3_uri}/videos/a b.mp4", max_bytes=10) == "too_large"
    assert problem(fetch, "s3://no-such-bucket-here/x.mp4") == "missing"


class LateBucket:
    """A bucket whose bytes arrive after the deadline. `told` is what the copy meets when they do."""

    def __init__(self) -> None:
        self.arrives, self.ended = threading.Event(), threading.Event()
        self.told: BaseException | None = None

    def size(self, key: str) -> int:
        return 1000

    def read_to_file(self, key: str, path: Path, arrived: Callable[[int], None]) -> int:
        self.arrives.wait(30)
        try:
            arrived(10)
        except BaseException as error:
            self.told = error
            raise
        finally:
            self.ended.set()
        return 10


def test_a_copy_that_nobody_waits_for_any_more_ends_with_its_next_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its thread would fill the disk with an object of any size behind the back of the build."""
    bucket = LateBucket()
    monkeypatch.setattr(fetching, "open_bucket", lambda *_, **__: bucket)
    with pytest.raises(SourceProblem, match=r"took longer than sources\.deadline_s=0\.05"):
        Sources("/nowhere", SourcesConfig(deadline_s=0.05)).fetch("s3://bucket/x.mp4", tmp_path)
    bucket.arrives.set()
    assert bucket.ended.wait(30)
    assert isinstance(bucket.told, Overdue)
