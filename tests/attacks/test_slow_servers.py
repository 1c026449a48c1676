"""Web servers of strangers that never let a download end: `sources.deadline_s` holds for the whole of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from data_pipeline.source import connection
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.http import download
from data_pipeline.source.http_problem import HttpProblem

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FOR_EVER = {
    "one header that never ends": (OK + b"X: ", b"a"),
    "headers without an end": (OK, b"X: y\r\n"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "trailers": (CHUNKED + b"4\r\nabcd\r\n0\r\n", b"A: b\r\n"),
    "the line of a chunk": (CHUNKED + b"4;", b"a"),
    "tiny chunks": (CHUNKED, b"1\r\na\r\n"),
    "a body of unknown length": (OK + b"\r\n", b"a"),
    "a body without bytes": (OK + b"Content-Length: 100\r\n\r\n", b""),
    "a status line": (b"HTTP/1.1 2", b"0"),
    "the body of an error": (b"HTTP/1.1 503 Busy\r\nContent-Length: 9999999\r\n\r\n", b"a"),
    "nothing": (b"", b""),
}
Serve = Callable[[bytes, bytes], int]


@pytest.fixture
def dripping() -> Iterator[Serve]:
    """A server that sends a beginning and then, ten times a second, one more piece, for ever. Gives its port."""
    ended = threading.Event()
    listening = []

    def drip(peer: socket.socket, begin: bytes, piece: bytes) -> None:
        with peer, suppress(OSError):
            peer.recv(4096)
            peer.sendall(begin)
            while not ended.wait(0.1):
                peer.sendall(piece)

    def serve(begin: bytes, piece: bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    threading.Thread(target=drip, args=(peer, begin, piece), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(server.getsockname()[1])

    yield serve
    ended.set()
    for server in listening:
        server.close()


@pytest.fixture
def bounded() -> Iterator[Callable[[Callable[[], None]], BaseException | None]]:
    """Runs a call that must end by itself within a minute, and gives what it raised."""

    def run(call: Callable[[], None]) -> BaseException | None:
        raised: list[BaseException] = []

        def caught() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                raised.append(error)

        thread = threading.Thread(target=caught, daemon=True)
        thread.start()
        thread.join(60.0)
        assert not thread.is_alive(), "it hangs"
        return raised[0] if raised else None

    return run


@pytest.mark.parametrize("name", FOR_EVER)
def test_a_server_that_never_ends_costs_no_more_than_the_deadline(
    name: str, dripping: Serve, bounded: Callable[[Callable[[], None]], BaseException | None], tmp_path: Path
) -> None:
    port = dripping(*FOR_EVER[name])
    config = SourcesConfig(deadline_s=0.7, timeout_s=30.0, first_byte_s=30.0, attempts=9)
    error = bounded(lambda: download(f"http://127.0.0.1:{port}/v.mp4", tmp_path / "v", config))
    assert isinstance(error, HttpProblem)
    assert error.error in ("timeout", "unreachable"), str(error)
    assert error.error == "timeout" or "failed" in str(error)
    assert not (tmp_path / "v").exists()


def test_a_tls_handshake_that_never_ends(
    dripping: Serve, bounded: Callable[[Callable[[], None]], BaseException | None], tmp_path: Path
) -> None:
    """A handshake record that says 16 kB, of which one byte comes at a time."""
    port = dripping(b"\x16\x03\x03\x40\x00\x02", b"\x00")
    config = SourcesConfig(deadline_s=0.7, connect_s=30.0, attempts=9)
    error = bounded(lambda: download(f"https://127.0.0.1:{port}/v.mp4", tmp_path / "v", config))
    assert isinstance(error, HttpProblem)
    assert error.error in ("timeout", "unreachable")


def test_a_name_server_that_never_answers(
    bounded: Callable[[Callable[[], None]], BaseException | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        asked.set()
        threading.Event().wait(60.0)
        return []

    monkeypatch.setattr(connection.socket, "getaddrinfo", look_up)
    config = SourcesConfig(deadline_s=0.3, attempts=9)
    error = bounded(lambda: download("http://slow.example/v.mp4", tmp_path / "v", config))
    assert asked.is_set()
    assert isinstance(error, HttpProblem)
    assert (error.error, str(error)) == ("timeout", "took longer than sources.deadline_s=0.3")


def test_redirects_share_one_deadline(
    bounded: Callable[[Callable[[], None]], BaseException | None], tmp_path: Path
) -> None:
    """Each answer comes in time, and all together do not."""
    server = socket.create_server(("127.0.0.1", 0))
    answered = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = server.accept()
                with peer:
                    peer.recv(4096)
                    threading.Event().wait(0.2)
                    answered.append(time.monotonic())
                    peer.sendall(b"HTTP/1.1 302 F\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v.mp4"
    config = SourcesConfig(deadline_s=0.7, redirects=1000, attempts=1)
    error = bounded(lambda: download(url, tmp_path / "v", config))
    server.close()
    assert isinstance(error, HttpProblem)
    assert error.error == "timeout"
    assert 1 < len(answered) < 10
