"""An HTTP proxy on loopback that spoils a share of the requests to an object store, from a fixed seed.

    with FlakyProxy("http://127.0.0.1:7480", seed=1) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint

The request goes on with its own Host header, so its SigV4 signature stays valid. Which requests are spoiled depends on
the seed, the method, the key and query, and how often that request was made before, never on timing or the name of the
bucket: threads may race, the faults stay the same.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

SLOW_DOWN = "slow_down"  # 503 without the store having seen the request
RESET_BEFORE = "reset_before"  # connection reset, the store has seen nothing
RESET_AFTER = "reset_after"  # connection reset after the store has done it
STALL = "stall"  # done by the store, but no byte of the answer comes until long after the client gave up
CUT_ANSWER = "cut_answer"  # headers and half of the body, then the connection closes
CUT_UPLOAD = "cut_upload"  # half of the body reaches the store, then both connections close
FAULTS = (SLOW_DOWN, RESET_BEFORE, RESET_AFTER, STALL, CUT_ANSWER, CUT_UPLOAD)

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}
_SLOW_DOWN_BODY = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class FlakyProxy:
    """Forwards to one upstream, and spoils a share of the requests.

    Args:
        upstream: `http://host:port` of the store.
        seed: chooses which requests are spoiled and how.
        share: share of requests, 0 to 1.
        faults: the kinds to choose from. A kind that cannot happen to a request (no body to cut) becomes a reset.
        stall_s: how long a stalled connection stays silent; set the client's timeout well below.
    """

    def __init__(
        self, upstream: str, *, seed: int, share: float = 0.1, faults: Sequence[str] = FAULTS, stall_s: float = 20.0
    ) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None, f"upstream {upstream!r} has no host"
        assert parts.port is not None, f"upstream {upstream!r} has no port"
        self.upstream = (parts.hostname, parts.port)
        self.seed, self.share, self.faults, self.stall_s = seed, share, tuple(faults), stall_s
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self._script: list[str | None] = []
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """The URL to use in place of the store's."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def next_faults(self, *faults: str | None) -> None:
        """Spoil exactly the next requests like this (None: leave alone), before the seed decides again."""
        with self._lock:
            self._script = list(faults)

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def choose(self, method: str, path: str) -> str | None:
        """The fault for this request, or None. Counts it."""
        with self._lock:
            self.requests += 1
            self.methods[method] += 1
            request = f"{method} {_without_chance(path)}"
            self._seen[request] += 1
            if self._script:
                fault = self._script.pop(0)
            else:
                fault = decision(self.seed, request, self._seen[request], self.share, self.faults)
            if fault:
                self.injected[fault] += 1
            return fault

    def wait(self) -> None:
        """Stay silent, until the proxy is closed at the latest."""
        self._stopped.wait(self.stall_s)


def _without_chance(path: str) -> str:
    """The path without what is drawn anew in each run: the bucket of a test, the id of an upload."""
    key = path.split("?", 1)[0].removeprefix("/").partition("/")[2]
    query = path.partition("?")[2]
    return f"{key}?{re.sub(r'uploadId=[^&]*', '', query)}"


def decision(seed: int, request: str, attempt: int, share: float, faults: Sequence[str]) -> str | None:
    """The fault of the n-th time a request is made: a pure function, so a run can be repeated."""
    digest = hashlib.sha256(f"{seed} {attempt} {request}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 >= share:
        return None
    return faults[int.from_bytes(digest[8:12], "big") % len(faults)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FlakyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the proxy counts what it does."""

    def _serve(self) -> None:
        proxy = self.server.proxy
        fault = proxy.choose(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == CUT_UPLOAD and length > 1:
            self._forward_part(self.rfile.read(length // 2), length)
            return self._reset()
        body = self.rfile.read(length)
        if fault == SLOW_DOWN:
            return self._answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN_BODY)
        if fault in (RESET_BEFORE, CUT_UPLOAD):
            return self._reset()
        status, headers, answer = self._forward(body)
        if fault == STALL:
            proxy.wait()
        if fault == CUT_ANSWER and self.command != "HEAD" and len(answer) > 1:
            self._answer(status, headers, answer[: len(answer) // 2], claimed=len(answer))
            self.close_connection = True
        elif fault in (RESET_AFTER, STALL, CUT_ANSWER):
            self._reset()
        else:
            self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _request(self) -> http.client.HTTPConnection:
        """The client's request line and headers, sent on as they came."""
        connection = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                connection.putheader(name, value)
        connection.endheaders()
        return connection

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = self._request()
        try:
            if body:
                connection.send(body)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, answer.getheaders(), data
        finally:
            connection.close()

    def _forward_part(self, part: bytes, length: int) -> None:
        assert len(part) < length
        connection = self._request()
        connection.send(part)
        time.sleep(0.02)  # let the store take it before it sees the end
        connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, claimed: int | None = None) -> None:
        self.send_response_only(status)
        told = {name.lower() for name, _ in headers}
        for name, value in headers:
            lower = name.lower()
            if lower not in _HOP_BY_HOP and (lower != "content-length" or self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" or "content-length" not in told:
            self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close with RST instead of FIN: what a client sees when a load balancer dies."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
