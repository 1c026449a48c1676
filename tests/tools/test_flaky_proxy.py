"""The fault proxy itself, in front of a plain HTTP server that remembers what reached it."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.tools import flaky_proxy
from tests.tools.flaky_proxy import FAULTS, FlakyProxy, decision

BODY = b"0123456789" * 10


class Origin(BaseHTTPRequestHandler):
    """Answers GET with BODY and keeps every upload that arrived whole."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if len(body) == int(self.headers.get("Content-Length") or 0):
            self.seen.append((self.command, self.headers["Host"], body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(BODY)

    do_GET = do_PUT = do_HEAD = _serve


@pytest.fixture
def origin() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    seen: list[tuple[str, str, bytes]] = []
    handler = type("Handler", (Origin,), {"seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


def request(proxy: FlakyProxy, method: str, body: bytes | None = None, timeout: float = 60.0) -> tuple[int, bytes]:
    parts = urlsplit(proxy.endpoint)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request(method, "/bucket/key", body=body, headers={"Host": "store.example"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_request_goes_through_unchanged_with_its_own_host(origin: tuple[str, list[Any]]) -> None:
    with FlakyProxy(origin[0], seed=0, share=0.0) as proxy:
        assert request(proxy, "GET") == (200, BODY)
        assert request(proxy, "PUT", b"payload")[0] == 200
        assert request(proxy, "HEAD") == (200, b"")
    assert origin[1] == [
        ("GET", "store.example", b""),
        ("PUT", "store.example", b"payload"),
        ("HEAD", "store.example", b""),
    ]
    assert (proxy.requests, sum(proxy.injected.values())) == (3, 0)


def test_slow_down_is_answered_without_the_store(origin: tuple[str, list[Any]]) -> None:
    with FlakyProxy(origin[0], seed=0, share=0.0) as proxy:
        proxy.next_faults(flaky_proxy.SLOW_DOWN)
        status, body = request(proxy, "PUT", b"x")
        assert status == 503
        assert b"<Code>SlowDown</Code>" in body
        assert origin[1] == []
        assert request(proxy, "GET")[0] == 200  # a script ends


@pytest.mark.parametrize(
    ("fault", "arrives"),
    [(flaky_proxy.RESET_BEFORE, False), (flaky_proxy.RESET_AFTER, True), (flaky_proxy.CUT_UPLOAD, False)],
)
def test_a_reset_upload_reaches_the_store_or_not(origin: tuple[str, list[Any]], fault: str, arrives: bool) -> None:
    with FlakyProxy(origin[0], seed=0, share=0.0) as proxy:
        proxy.next_faults(fault)
        with pytest.raises(ConnectionResetError):
            request(proxy, "PUT", b"payload" * 1000)
    assert [body for _, _, body in origin[1]] == ([b"payload" * 1000] if arrives else [])


def test_a_cut_answer_ends_half_way(origin: tuple[str, list[Any]]) -> None:
    with FlakyProxy(origin[0], seed=0, share=0.0) as proxy:
        proxy.next_faults(flaky_proxy.CUT_ANSWER)
        with pytest.raises(http.client.IncompleteRead) as broken:
            request(proxy, "GET")
    assert broken.value.partial == BODY[:50]
    assert broken.value.expected == 50


def test_a_stall_outlasts_the_client(origin: tuple[str, list[Any]]) -> None:
    with FlakyProxy(origin[0], seed=0, share=0.0, stall_s=600.0) as proxy:
        proxy.next_faults(flaky_proxy.STALL)
        with pytest.raises(TimeoutError):
            request(proxy, "PUT", b"x", timeout=0.2)
        end = time.monotonic() + 60
        while not origin[1] and time.monotonic() < end:  # a busy machine may take longer than the client to get there
            time.sleep(0.01)
    assert [body for _, _, body in origin[1]] == [b"x"]


def test_the_share_of_spoiled_requests_is_the_one_asked_for_and_repeats_with_the_seed() -> None:
    requests = [(f"PUT /bucket/{number}", attempt) for number in range(10_000) for attempt in (1, 2)]
    first = [decision(1, name, attempt, 0.1, FAULTS) for name, attempt in requests]
    counts = Counter(first)
    assert abs(counts[None] / len(requests) - 0.9) < 0.01  # five sigma are 0.0106
    assert all(abs(counts[fault] / len(requests) - 0.1 / len(FAULTS)) < 0.006 for fault in FAULTS)
    assert first == [decision(1, name, attempt, 0.1, FAULTS) for name, attempt in requests]
    assert first != [decision(2, name, attempt, 0.1, FAULTS) for name, attempt in requests]


def test_the_choice_does_not_depend_on_the_bucket_or_an_uploads_id(origin: tuple[str, list[Any]]) -> None:
    chosen = []
    for bucket, upload in (("one", "aa"), ("two", "bb")):
        with FlakyProxy(origin[0], seed=3, share=0.5) as proxy:
            paths = [f"/{bucket}/k/{number}?partNumber=1&uploadId={upload}" for number in range(50)]
            paths += [f"/{bucket}?list-type=2&prefix=k"] * 10
            chosen.append([proxy.choose("PUT", path) for path in paths])
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 3
