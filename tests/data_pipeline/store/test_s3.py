"""The S3 store: the contract on moto and on a real gateway, and a network that breaks streams and loses answers."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from moto.server import ThreadedMotoServer

from data_pipeline.store.base import CredentialsRefused, RequestRefused, Retries, StoreError
from data_pipeline.store.open import open_store
from data_pipeline.store.s3 import S3Store
from tests.data_pipeline.store.contract import check_store
from tests.tools.flaky_proxy import CUT_ANSWER, CUT_UPLOAD, RESET_AFTER, RESET_BEFORE, SLOW_DOWN, STALL, FlakyProxy
from tests.tools.web import QuietHandler, serving


@pytest.fixture
def moto_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An in-process imitation of S3: good for protocol details, not for proof."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
    for name, value in {**settings, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"  # moto's memory outlives its server
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/pre"
    server.stop()


@pytest.fixture
def proxied(moto_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Store, FlakyProxy]]:
    """A store that talks through a proxy which does as each test says; pauses between tries are cut short."""
    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    with FlakyProxy(os.environ["AWS_ENDPOINT_URL"], seed=0, share=0.0, stall_s=600.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(moto_uri, Retries(attempts=4, timeout_s=60))  # a slow answer of a busy machine is no fault
        assert isinstance(store, S3Store)
        yield store, proxy


def test_moto_keeps_the_contract(moto_uri: str, tmp_path: Path) -> None:
    check_store(open_store(moto_uri), tmp_path)


@pytest.mark.s3
def test_a_real_gateway_keeps_the_contract(s3_uri: str, tmp_path: Path) -> None:
    check_store(open_store(s3_uri), tmp_path)


@pytest.mark.s3
def test_large_files_go_up_in_parts(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Store, "part_bytes", 5 << 20)
    data = os.urandom((11 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    store = open_store(s3_uri)
    store.write_file("large", tmp_path / "large")
    assert store.read("large") == data
    bucket = urlsplit(s3_uri).netloc
    head = boto3.session.Session().client("s3").head_object(Bucket=bucket, Key="some/prefix/large")
    assert re.fullmatch(r'"[0-9a-f]{32}-3"', head["ETag"])  # S3's way to say: three parts


@pytest.mark.s3
def test_wrong_credentials_are_refused_with_the_remedy(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError, match="check the credentials"):
        open_store(s3_uri).write("x", b"")


def test_listing_goes_on_over_pages(moto_uri: str) -> None:
    store = open_store(moto_uri)
    for number in range(7):
        store.write(f"k/{number}", b"")
    assert isinstance(store, S3Store)
    client, pages = store._client, []
    original = client.list_objects_v2
    client.list_objects_v2 = lambda **request: pages.append(1) or original(**request, MaxKeys=3)
    assert list(store.keys("k/")) == [f"k/{number}" for number in range(7)]
    assert len(pages) == 3


def test_a_broken_stream_goes_on_where_it_stopped(proxied: tuple[S3Store, FlakyProxy], tmp_path: Path) -> None:
    store, proxy = proxied
    data = os.urandom(300_000)
    store.write("x", data)
    asked: list[str] = []
    store._client.meta.events.register(
        "before-send.s3.GetObject", lambda request, **_: asked.append(request.headers.get("Range"))
    )
    proxy.next_faults(CUT_ANSWER, CUT_ANSWER)
    assert store.read("x") == data
    starts = [int(text.decode().removeprefix("bytes=").partition("-")[0]) for text in asked[1:]]
    assert asked[0] is None
    assert starts == [150_000, 225_000], "each request asks only for what is missing"
    proxy.next_faults(CUT_ANSWER, SLOW_DOWN, RESET_BEFORE)
    assert store.read_to_file("x", tmp_path / "x") == len(data)
    assert (tmp_path / "x").read_bytes() == data
    proxy.next_faults(CUT_ANSWER)
    assert store.read("x", 1000, 200_000) == data[1000:201_000]
    proxy.next_faults(*[CUT_ANSWER] * 8)
    assert store.read("x") == data, "eight breaks, each after some bytes, are no four failures in a row"


def test_what_is_sent_carries_the_digest_that_the_store_checks(
    proxied: tuple[S3Store, FlakyProxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = proxied
    monkeypatch.setattr(S3Store, "part_bytes", 5 << 20)
    sent: list[tuple[bytes, bytes]] = []

    def note(request: Any, **_: Any) -> None:
        body = request.body if isinstance(request.body, bytes) else request.body.getvalue()
        sent.append((request.headers["Content-MD5"], body))

    for name in ("PutObject", "UploadPart"):
        store._client.meta.events.register(f"before-send.s3.{name}", note)
    (tmp_path / "large").write_bytes(os.urandom((11 << 20) + 17))
    store.write("x", b"data")
    store.put_if_absent("y", b"data")
    store.write_file("large", tmp_path / "large")
    assert [len(body) for _, body in sent] == [4, 4, 5 << 20, 5 << 20, (1 << 20) + 17]
    for digest, body in sent:
        assert base64.b64decode(digest) == hashlib.md5(body, usedforsecurity=False).digest()


def test_parts_become_an_object_or_nothing(
    proxied: tuple[S3Store, FlakyProxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the completion is lost; a part does not get through; somebody removes the parts.

    moto does not know the answer that S3 gives, in the first and in the last case: that there is no such upload.
    """
    store, proxy = proxied
    monkeypatch.setattr(S3Store, "part_bytes", 5 << 20)
    data = os.urandom((11 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    client = store._client

    def left() -> list[Any]:
        return client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])

    sent: list[Any] = []
    good = 1  # completions that are let through

    def no_such_upload(request: Any, **_: Any) -> AWSResponse | None:
        sent.append(request)
        if len(sent) <= good:
            return None
        raw = SimpleNamespace(stream=lambda: [b"<Error><Code>NoSuchUpload</Code></Error>"])
        return AWSResponse(request.url, 404, {}, raw)

    client.meta.events.register("before-send.s3.CompleteMultipartUpload", no_such_upload)
    proxy.next_faults(None, None, None, None, RESET_AFTER)
    store.write_file("x", tmp_path / "large")
    assert len(sent) == 2
    assert store.read("x") == data

    proxy.next_faults(None, None, *[SLOW_DOWN] * 4)
    with pytest.raises(StoreError, match=r"/pre/y: failed 4 times"):
        store.write_file("y", tmp_path / "large")
    assert not store.exists("y")
    assert left() == [], "parts that nobody completes cost money for ever"

    store.write("z", b"old")
    good = 0
    sent.clear()
    with pytest.raises(StoreError, match=r"/pre/z: NoSuchUpload"):
        store.write_file("z", tmp_path / "large")
    assert store.read("z") == b"old"
    assert left() == []


def test_what_a_killed_upload_in_parts_has_left_is_removed_by_who_writes_alone(
    moto_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process aborts nothing, and its parts stay, in no listing. Others count as alive for a day."""
    store = open_store(moto_uri)
    assert isinstance(store, S3Store)
    client = store._client

    def left() -> list[str]:
        return sorted(item["Key"] for item in client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", []))

    names = [store.prefix + name for name in ("step-1/a", "step-1/b", "step-2/a", "shards/0.tar")]
    for name in (*names, "elsewhere/a"):
        upload = client.create_multipart_upload(Bucket=store.bucket, Key=name)["UploadId"]
        client.upload_part(Bucket=store.bucket, Key=name, UploadId=upload, PartNumber=1, Body=b"half")
    assert list(store.keys()) == []
    store.remove_leftovers("step-1", alone=True)
    assert left() == sorted([*names[2:], "elsewhere/a"])
    with monkeypatch.context() as patched:
        patched.setattr("data_pipeline.store.s3.LEFTOVER", timedelta(days=36_500))
        store.remove_leftovers("")
    assert left() == sorted([*names[2:], "elsewhere/a"]), "somebody may be at work there"
    store.remove_leftovers("")  # moto's uploads are all of the year 2010
    assert left() == ["elsewhere/a"], "what is not below the address is not ours"


def test_an_object_replaced_while_its_stream_is_broken_is_not_glued_together(
    proxied: tuple[S3Store, FlakyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, proxy = proxied
    store.write("x", b"1" * 300_000)
    proxy.next_faults(CUT_ANSWER)
    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: store.write("x", b"2" * 300_000))
    with pytest.raises(StoreError, match=r"/pre/x: (412|PreconditionFailed)"):
        store.read("x")
    assert store.read("x") == b"2" * 300_000


REFUSALS = [
    # status, code, requests of three that are made, and what the user sees
    (400, "InvalidRequest", 1, RequestRefused),
    (400, "KeyTooLongError", 1, RequestRefused),
    (405, "MethodNotAllowed", 1, RequestRefused),
    (409, "Whatever", 1, StoreError),
    (412, "PreconditionFailed", 1, StoreError),
    (400, "ExpiredToken", 1, CredentialsRefused),
    (403, "InvalidAccessKeyId", 1, CredentialsRefused),
    (403, "SignatureDoesNotMatch", 1, CredentialsRefused),
    (403, "RequestTimeTooSkewed", 1, CredentialsRefused),
    (403, "AccessDenied", 1, PermissionError),
    (401, "Unauthorized", 1, CredentialsRefused),
    (404, "NoSuchKey", 1, FileNotFoundError),
    (404, "NoSuchBucket", 1, FileNotFoundError),
    (400, "RequestTimeout", 3, StoreError),
    (403, "SlowDown", 3, StoreError),
    (408, "Whatever", 3, StoreError),
    (429, "Whatever", 3, StoreError),
    (500, "InternalError", 3, StoreError),
    (503, "Whatever", 3, StoreError),
]


def test_what_may_pass_is_asked_for_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = iter([case for case in REFUSALS for _ in range(case[2])])

    class Refusing(QuietHandler):
        protocol_version = "HTTP/1.1"  # in which a client hears at once that it may send its body

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            status, code, *_ = next(answers)
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with serving(Refusing) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store("s3://bucket/pre", Retries(attempts=3, timeout_s=30))
        for status, code, requests, error in REFUSALS:
            asked.clear()
            with pytest.raises(error, match=r"s3://bucket/pre/x") as found:
                store.write("x", b"data")
            assert type(found.value) is error, "neither more nor less is said"
            assert asked == ["/bucket/pre/x"] * requests, f"{status} {code}"


def test_a_store_that_knows_no_ranges_gives_no_other_bytes_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers each request with the whole object, as HTTP allows (RFC 9110, section 14.2)."""
    breaks = [4]

    class Whole(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.send_header("ETag", '"e"')
            self.end_headers()
            self.wfile.write(b"0123456789"[: breaks.pop() if breaks else 10])
            self.close_connection = True

    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with serving(Whole) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store("s3://bucket/pre", Retries(attempts=3, timeout_s=30))
        with pytest.raises(StoreError, match="3 times, last: the store sent other bytes than those of bytes=4-9"):
            store.read("x")
        assert store.read("x") == b"0123456789"
        for offset, length, asked in ((2, 3, "2-4"), (0, 9, "0-8")):
            with pytest.raises(StoreError, match=f"other bytes than those of bytes={asked}"):
                store.read("x", offset, length)
        assert store.read("x", 0, 10) == store.read("x", 0, 65_537) == b"0123456789", "the whole object was asked for"


@pytest.mark.parametrize("fault", [SLOW_DOWN, RESET_BEFORE, RESET_AFTER, STALL, CUT_ANSWER, CUT_UPLOAD])
def test_every_request_survives_a_fault(fault: str, proxied: tuple[S3Store, FlakyProxy]) -> None:
    store, proxy = proxied
    if fault == STALL:
        store.retries = Retries(attempts=4, timeout_s=1.0)  # before the first request

    def spoiled(request: Callable[[], Any]) -> Any:
        before = proxy.injected[fault]
        proxy.next_faults(fault)
        answer = request()
        assert proxy.injected[fault] == before + 1
        return answer

    spoiled(lambda: store.write("w", b"data"))
    assert spoiled(lambda: store.read("w")) == b"data"
    assert spoiled(lambda: store.put_if_absent("p", b"mine")), "the first writer must hear that it won"
    assert not spoiled(lambda: store.put_if_absent("p", b"other")), "the second writer must hear that it lost"
    assert spoiled(lambda: list(store.keys())) == ["p", "w"]
    assert spoiled(lambda: store.size("w")) == 4
    spoiled(lambda: store.delete("w"))
    assert not store.exists("w")
    assert store.read("p") == b"mine"


def test_a_store_that_stays_down_is_an_error_not_an_absence(proxied: tuple[S3Store, FlakyProxy]) -> None:
    store, proxy = proxied
    store.write("x", b"data")
    proxy.next_faults(*[SLOW_DOWN] * 20)
    with pytest.raises(StoreError, match=r"/pre/x: failed 4 times"):
        store.exists("x")


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match="set AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket/x").read("y")


class _HalfAPage(BaseHTTPRequestHandler):
    """Answers the first listing with half a page of XML, and the following ones with a whole page of one key."""

    pages = 0

    def do_GET(self) -> None:
        type(self).pages += 1
        body = (
            b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>k</Key>'
            b"<Size>1</Size></Contents>"
        )
        body = body[:60] if type(self).pages == 1 else body + b"</ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_an_answer_that_is_no_xml_is_asked_for_again(moto_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), _HalfAPage) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            assert list(open_store("s3://bucket", Retries(attempts=2, timeout_s=60)).keys()) == ["k"]
        finally:
            server.shutdown()
            thread.join(30)
    assert _HalfAPage.pages == 2
