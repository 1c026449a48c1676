"""A web server of a test, a resolver and connections that fail as a test says."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from data_pipeline.source.fetch import SourceProblem
from tests.tools.web import QuietHandler, serving

_getaddrinfo = socket.getaddrinfo
VIDEO = b"\0\0\0\x18ftypmp42 and so on"


class Site:
    """What a handler of the test answers, and what was asked of it: (path as sent, headers)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []

    @contextmanager
    def open(self) -> Iterator[int]:
        site = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                status, headers, body = site.answers.pop(0) if site.answers else (200, {}, VIDEO)
                self.send_response(status)
                for name, value in headers.items():
                    self.wfile_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def wfile_header(self, name: str, value: str) -> None:
                """A header with raw bytes: `send_header` allows Latin-1 only."""
                self._headers_buffer.append(f"{name}: {value}\r\n".encode("utf-8", "surrogateescape"))  # type: ignore[attr-defined]

            def do_CONNECT(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                self.send_response(*site.answers.pop(0)[:1])
                self.end_headers()

        with serving(Handler) as port:
            yield port


def problem(fetch: Callable[..., bytes], url: str, **limits: Any) -> tuple[str, str]:
    with pytest.raises(SourceProblem) as found:
        fetch(url, **limits)
    return found.value.error, found.value.detail


def named(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str] | int]) -> list[str]:
    """A resolver that knows these names, with their addresses or its error; gives the names it was asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host == "127.0.0.1":
            return _getaddrinfo(host, port, *rest, **more)
        asked.append(host)
        found = names.get(host, socket.EAI_NONAME)
        if isinstance(found, int):
            raise socket.gaierror(found, "resolver")
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def counted_connections(monkeypatch: pytest.MonkeyPatch, fails: dict[str, OSError] | None = None) -> list[str]:
    """The addresses that are connected to, in order; some of them fail. `site` is where the test's own server is."""
    tried: list[str] = []
    real = socket.create_connection

    def connect(address: tuple[str, int], **rest: Any) -> socket.socket:
        tried.append(address[0])
        if error := (fails or {}).get(address[0]):
            raise error
        return real(("127.0.0.1", address[1]), **rest)

    monkeypatch.setattr(socket, "create_connection", connect)
    return tried
