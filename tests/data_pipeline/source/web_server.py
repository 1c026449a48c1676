"""A web server on loopback that redirects, breaks, lies, drips or points inside the network, for downloads."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = bytes(range(256)) * 1000
"""What its paths give, whole or not."""


def first_byte(request: BaseHTTPRequestHandler) -> int:
    """Where the range that is asked for begins; 0 without a range."""
    return int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))


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
        """Answer as the first part of the path says; any other path gives all of `DATA`."""
        name, _, argument = request.path.lstrip("/").partition("/")
        answers = {
            "status": self.status,
            "redirect": self.redirect,
            "flaky": self.flaky,
            "broken": self.broken,
            "rangeless": self.rangeless,
            "changed": self.changed,
            "replaced": self.replaced,
            "endless": self.endless,
            "crumbs": self.crumbs,
            "shifted": self.shifted,
            "shrunk": self.shrunk,
            "announced": self.announced,
            "hops": self.hops,
            "empty": self.empty,
        }
        answers.get(name, self.whole)(request, argument)

    def whole(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        self.answer(request, 200, DATA)

    def empty(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        self.answer(request, 200, b"")

    def status(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        self.answer(request, int(argument), b"no")

    def redirect(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        location = {
            "loop": "/redirect/loop",
            "file": "file:///etc/passwd",
            "ok": "/whole/x",
            "user": "http://u:p@h/",
        }
        self.answer(request, 302, b"", Location=location[argument])

    def hops(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """Redirects that are relative to where they come from."""
        location = {"1/x": "2/y", "1/2/y": "z"}.get(argument)
        if location is None:
            self.answer(request, 200 if argument == "1/2/z" else 404, DATA)
        else:
            self.answer(request, 302, b"", Location=location)

    def flaky(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """Two failures, then the file."""
        self.failures[argument] = self.failures.get(argument, 0) + 1
        if self.failures[argument] <= 2:
            self.answer(request, 503, b"")
        else:
            self.whole(request, argument)

    def changed(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """A file cut short, then another one under the same ETag."""
        self.failures["changed"] = self.failures.get("changed", 0) + 1
        again = self.failures["changed"] > 1
        self.answer(request, 200, DATA[::-1] if again else DATA, short=not again, ETag='"x"')

    def shrunk(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """A file cut short, then a shorter one under the same ETag."""
        first = not self.failures.setdefault("shrunk", 0)
        self.failures["shrunk"] += 1
        self.answer(request, 200, DATA if first else b"\0short", short=first, ETag='"x"')

    def endless(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """Bytes without an end, or 20 s of them for a reader who would never stop."""
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        end = time.monotonic() + 20
        while time.monotonic() < end:
            request.wfile.write(b"x" * 1000)
            time.sleep(0.001)

    def announced(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """A length of a terabyte, and no byte."""
        request.send_response(200)
        request.send_header("Content-Length", str(10**12))
        request.end_headers()
        request.close_connection = True

    def crumbs(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """A twentieth of the file at a time."""
        start = first_byte(request)
        self.part(request, start, start + len(DATA) // 20 + 1, ETag='W/"weak"', Last_Modified="yesterday")

    def shifted(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """Half of the file, then a rest that begins a tenth of the file before what was asked for."""
        start = first_byte(request)
        self.part(request, max(0, start - len(DATA) // 10), len(DATA) if start else len(DATA) // 2, ETag='"x"')

    def rangeless(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """As `broken`, by a server that knows no ranges."""
        self.cut_short(request, 0)

    def broken(self, request: BaseHTTPRequestHandler, argument: str) -> None:
        """Two thirds of what is asked for, then the connection closes; the third time it holds."""
        self.cut_short(request, first_byte(request))

    def cut_short(self, request: BaseHTTPRequestHandler, start: int) -> None:
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

    def replaced(self, request: BaseHTTPRequestHandler, argument: str) -> None:
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
