"""A web server on loopback that redirects, breaks, lies, drips or points inside the network, for downloads."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = bytes(range(256)) * 1000
"""What its paths give, whole or not."""


class WebServer:
    """A web server on loopback whose paths misbehave as their names say."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.failures: dict[str, int] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with suppress(ConnectionError):  # a client that has seen enough hangs up in the middle of a body
                    super().handle()

            def do_GET(self) -> None:
                web.ranges.append(self.headers.get("Range"))
                web.requests.append(self.path)
                web.headers.append(dict(self.headers))
                web.serve(self)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        name, _, argument = request.path.lstrip("/").partition("/")
        if name == "status":
            self.answer(request, int(argument), b"no")
        elif name == "redirect":
            location = {
                "loop": "/redirect/loop",
                "file": "file:///etc/passwd",
                "ok": "/whole/x",
                "user": "http://u:p@h/",
            }
            self.answer(request, 302, b"", Location=location[argument])
        elif name == "flaky":
            self.failures[argument] = self.failures.get(argument, 0) + 1
            if self.failures[argument] <= 2:
                self.answer(request, 503, b"")
            else:
                self.whole(request)
        elif name in ("broken", "rangeless"):
            self.broken(request, ranges=name == "broken")
        elif name == "changed":
            self.failures["changed"] = self.failures.get("changed", 0) + 1
            self.answer(
                request,
                200,
                DATA[::-1] if self.failures["changed"] > 1 else DATA,
                short=self.failures["changed"] < 2,
                ETag='"x"',
            )
        elif name == "replaced":
            self.replaced(request)
        elif name == "endless":
            request.send_response(200)
            request.end_headers()
            request.close_connection = True
            end = time.monotonic() + 20  # for a reader who would never stop
            while time.monotonic() < end:
                request.wfile.write(b"x" * 1000)
                time.sleep(0.001)
        elif name == "crumbs":  # a twentieth at a time
            start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.part(request, start, start + len(DATA) // 20 + 1, ETag='W/"weak"', Last_Modified="yesterday")
        elif name == "shifted":  # and goes on from a tenth before what was asked for
            start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.part(request, max(0, start - len(DATA) // 10), len(DATA) if start else len(DATA) // 2, ETag='"x"')
        elif name == "shrunk":
            first = not self.failures.setdefault("shrunk", 0)
            self.failures["shrunk"] += 1
            self.answer(request, 200, DATA if first else b"\0short", short=first, ETag='"x"')
        elif name == "announced":
            request.send_response(200)
            request.send_header("Content-Length", str(10**12))
            request.end_headers()
            request.close_connection = True
        elif name == "hops":
            location = {"1/x": "2/y", "1/2/y": "z"}.get(argument)
            if location is None:
                self.answer(request, 200 if argument == "1/2/z" else 404, DATA)
            else:
                self.answer(request, 302, b"", Location=location)
        elif name == "empty":
            self.answer(request, 200, b"")
        else:
            self.whole(request)

    def whole(self, request: BaseHTTPRequestHandler) -> None:
        self.answer(request, 200, DATA)

    def broken(self, request: BaseHTTPRequestHandler, *, ranges: bool) -> None:
        """Two thirds of what is asked for, then the connection closes; the third time it holds."""
        start = 0
        if ranges and (asked := request.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.failures[request.path] = self.failures.get(request.path, 0) + 1
        headers = {"ETag": '"v1"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        self.answer(request, 206 if start else 200, DATA[start:], short=self.failures[request.path] < 3, **headers)

    def part(self, request: BaseHTTPRequestHandler, start: int, stop: int, **headers: str) -> None:
        """Bytes up to `stop` of all from `start` on, then the connection closes."""
        request.send_response(206 if start else 200)
        headers["Content-Range"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        for name, value in headers.items():
            if start or name != "Content-Range":
                request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(DATA) - start))
        request.end_headers()
        request.wfile.write(DATA[start:stop])
        request.close_connection = True

    def replaced(self, request: BaseHTTPRequestHandler) -> None:
        """A file cut short, then replaced by another of the same length; ranges of it as RFC 9110 has them."""
        first = not self.failures.setdefault("replaced", 0)
        self.failures["replaced"] += 1
        data, headers = (DATA, {"ETag": '"v1"'}) if first else (DATA[::-1], {"ETag": '"v2"'})
        asked = request.headers.get("Range")
        if asked is None or request.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            self.answer(request, 200, data, short=first, **headers)
        else:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(request, 206, data[start:], **headers)

    def answer(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, *, short: bool = False, **headers: str
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) * 2 // 3] if short else body)
        request.close_connection = short
