"""Web hosts: each address is tried, dead ones are asked once, and the network of this machine is no fault of a row."""

from __future__ import annotations

import email.utils
import errno
import gzip
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.source import connection, hosts, http
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.hosts import Hosts
from data_pipeline.source.http_problem import HttpProblem, Place
from data_pipeline.source.trouble import MachineTrouble
from tests.tools.ports import free_port
from tests.tools.web import QuietHandler, serving
from trainer.config.loader import load_config

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


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing is known of any host, and pauses between tries are only written down."""
    found: list[float] = []
    monkeypatch.setattr(http.time, "sleep", found.append)
    fresh = Hosts()
    for module in (http, connection):
        monkeypatch.setattr(module, "HOSTS", fresh)
    return found


@pytest.fixture
def site(pauses: list[float]) -> Site:
    return Site()


@pytest.fixture
def fetch(tmp_path: Path, pauses: list[float]) -> Callable[..., bytes]:
    def get(url: str, **limits: Any) -> bytes:
        path = Sources("/nowhere", SourcesConfig(**({"attempts": 4, "timeout_s": 60.0} | limits))).fetch(url, tmp_path)
        data = path.read_bytes()
        path.unlink()
        return data

    return get


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


# --- what a server answers -------------------------------------------------------------------------------------------


def test_all_addresses_of_a_name_are_tried(
    fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name has an IPv6 address first, on which nobody listens; `curl` takes the second one."""
    named(monkeypatch, {"both.example": ["2001:db8::7", "192.0.2.7", "127.0.0.1"]})
    fails = {"2001:db8::7": OSError(errno.ENETUNREACH, "no route"), "192.0.2.7": TimeoutError("timed out")}
    tried = counted_connections(monkeypatch, dict(fails))
    with site.open() as port:
        assert fetch(f"http://both.example:{port}/x.mp4") == VIDEO
    assert tried == ["2001:db8::7", "192.0.2.7", "127.0.0.1"]
    assert site.asked[0][1]["Host"] == f"both.example:{port}"


@pytest.mark.parametrize("status", [*range(520, 528), 529, 503, 429])
def test_statuses_that_pass_are_waited_out(status: int, fetch: Callable[..., bytes], site: Site) -> None:
    site.answers = [(status, {}, b"busy")]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO


def test_a_server_that_asks_to_wait_is_waited_for(fetch: Callable[..., bytes], site: Site, pauses: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 45, usegmt=True)
    site.answers = [
        (429, {"Retry-After": "30"}, b""),
        (503, {"Retry-After": date}, b""),
        (503, {"Retry-After": "soon"}, b""),
    ]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO
        assert pauses[0] == 30
        assert 30 < pauses[1] <= 45
        assert pauses[2] < 30
        site.answers = [(429, {"Retry-After": "31"}, b""), (429, {"Retry-After": "9" * 30}, b"")]
        assert problem(fetch, f"http://127.0.0.1:{port}/x.mp4", deadline_s=30)[0] == "timeout"
        assert problem(fetch, f"http://127.0.0.1:{port}/x.mp4")[0] == "timeout"
    assert len(pauses) == 3, "nobody waits for what cannot come in time"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/vidéo café.mp4", "/vid%C3%A9o%20caf%C3%A9.mp4"),
        ("/vid%C3%A9o.mp4", "/vid%C3%A9o.mp4"),
        ("/caf\udce9.mp4", "/caf%E9.mp4"),  # a Latin-1 byte, which curl sends as it is
        ("/with space.mp4?q=a b&é", "/with%20space.mp4?q=a%20b&%C3%A9"),
        ("  /led.mp4 ", "/led.mp4"),
        ("视频.mp4", "/v/%E8%A7%86%E9%A2%91.mp4"),
    ],
)
def test_redirects_as_servers_write_them(location: str, path: str, fetch: Callable[..., bytes], site: Site) -> None:
    site.answers = [(302, {"Location": location}, b"")]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/v/x") == VIDEO
    assert site.asked[1][0] == path


@pytest.mark.parametrize(
    ("body", "headers", "name"),
    [
        (b"<!DOCTYPE html><html><body>Video unavailable</body></html>", {}, "an HTML page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang=en>", {}, "an HTML page"),
        (b'<?xml version="1.0"?><Error/>', {}, "an XML document"),
        (b'{"error": "gone"}', {}, "a JSON text"),
        (gzip.compress(VIDEO, mtime=0), {"Content-Encoding": "gzip"}, "gzip data"),
        (gzip.compress(VIDEO, mtime=0), {}, "gzip data"),
        (b"PK\x03\x04...", {}, "a zip archive"),
        (b"anything", {"Content-Encoding": "br"}, "compressed (br)"),
    ],
)
def test_what_comes_in_place_of_a_video_is_named(
    body: bytes, headers: dict[str, str], name: str, fetch: Callable[..., bytes], site: Site, tmp_path: Path
) -> None:
    site.answers = [(200, headers, body)]
    with site.open() as port:
        error, detail = problem(fetch, f"http://127.0.0.1:{port}/x.mp4")
    assert error == "not_a_video"
    assert name in detail
    assert os.listdir(tmp_path) == []


# --- hosts that do not answer ----------------------------------------------------------------------------------------


def test_a_host_that_does_not_exist_is_asked_once(
    fetch: Callable[..., bytes], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = named(monkeypatch, {})
    first = problem(fetch, "http://gone.example/a.mp4")
    assert first == ("unreachable", "gone.example: there is no such host")
    assert problem(fetch, "http://gone.example/b.mp4") == first, "the same words, or a unit would have other bytes"
    assert (asked, pauses) == (["gone.example"], [])
    now = time.monotonic()
    monkeypatch.setattr(hosts.time, "monotonic", lambda: now + 301)
    assert problem(fetch, "http://gone.example/c.mp4") == first
    assert asked == ["gone.example"] * 2, "after some minutes it is asked again"


def test_a_host_that_refuses_is_asked_once_and_its_other_port_answers(
    fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = free_port()
    tried = counted_connections(monkeypatch)
    error, detail = problem(fetch, f"http://127.0.0.1:{closed}/a.mp4")
    assert error == "unreachable"
    assert "ConnectionRefusedError" in detail
    assert problem(fetch, f"http://127.0.0.1:{closed}/b.mp4")[0] == "unreachable"
    assert len(tried) == 1
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO


def test_a_host_that_answered_before_is_given_time_to_come_back(
    fetch: Callable[..., bytes], site: Site, pauses: list[float]
) -> None:
    with site.open() as port:
        fetch(f"http://127.0.0.1:{port}/x.mp4")
    assert problem(fetch, f"http://127.0.0.1:{port}/y.mp4", attempts=4)[0] == "unreachable"
    assert len(pauses) == 3
    assert problem(fetch, f"http://127.0.0.1:{port}/z.mp4", attempts=4)[0] == "unreachable"
    assert len(pauses) == 3, "and is known then"


def test_a_silent_file_costs_two_waits_and_a_silent_host_no_more_than_six(
    fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tried = counted_connections(monkeypatch)
        limits = {"first_byte_s": 0.05, "attempts": 8}
        for number in range(5):
            error, detail = problem(fetch, f"{url}/{number}.mp4", **limits)
            assert error == "unreachable"
            assert "sources.first_byte_s=0.05" in detail
        assert len(tried) == 6, "three rows of two tries"


def test_a_silent_file_does_its_neighbours_no_harm(pauses: list[float]) -> None:
    memory, place = Hosts(), Place("http", "host", 80)
    silence = HttpProblem("unreachable", "no answer")
    for _ in range(3):
        memory.silent(place, silence)
        memory.silent(place, silence)
        memory.check(place)
        memory.answered(place)
    for _ in range(3):
        memory.silent(place, silence)
    with pytest.raises(HttpProblem, match="no answer"):
        memory.check(place)
    memory.check(Place("https", "host", 443))


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Hosts()
    for number in range(3000):
        place = Place("http", f"host-{number}", 80)
        memory.connected(place, "192.0.2.1")
        memory.silent(place, HttpProblem("unreachable", "x"))
    assert len(memory._answered) == len(memory._silent) == 1024


# --- the network of this machine -------------------------------------------------------------------------------------


def test_a_resolver_that_fails_is_no_fault_of_a_row(
    fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = socket.EAI_AGAIN
    named(monkeypatch, {"a.example": again, "probe.invalid": again})
    with pytest.raises(MachineTrouble, match="no name server answers"):
        fetch("http://a.example/x.mp4")
    asked = named(monkeypatch, {"a.example": again})  # only this host's own name servers are down
    assert problem(fetch, "http://a.example/x.mp4")[0] == "unreachable"
    assert asked == ["a.example"] * 3 + ["probe.invalid"]


def test_names_that_were_known_before_tell_a_lost_network(
    fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.open() as port:
        named(monkeypatch, {"one.example": ["127.0.0.1"]})
        fetch(f"http://one.example:{port}/x.mp4")
        assert problem(fetch, "http://two.example/x.mp4")[0] == "unreachable", "the other name is still known"
        named(monkeypatch, {})
        with pytest.raises(MachineTrouble, match=r"answered before \(one\.example\)"):
            fetch("http://three.example/x.mp4")


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(errno.EHOSTUNREACH, "no route")])
def test_hosts_that_answered_before_tell_a_lost_network(
    error: OSError, fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, list[str] | int] = {f"{name}.example": [f"192.0.2.{n}"] for n, name in enumerate("abc", 1)}
    named(monkeypatch, names)
    fails = {"192.0.2.2": error}
    counted_connections(monkeypatch, fails)
    with site.open() as port:
        fetch(f"http://a.example:{port}/x.mp4")
        assert problem(fetch, f"http://b.example:{port}/x.mp4")[0] == "unreachable", "a.example still answers"
        fails |= {"192.0.2.1": error, "192.0.2.3": error}
        with pytest.raises(MachineTrouble, match=r"answered before \(a\.example\)"):
            fetch(f"http://c.example:{port}/x.mp4")


@pytest.mark.parametrize("route", [True, False])
def test_without_a_route_no_row_is_at_fault(
    route: bool, fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, {"a.example": ["192.0.2.1"]})
    counted_connections(monkeypatch, {"192.0.2.1": OSError(errno.ENETUNREACH, "no route")})
    monkeypatch.setattr(hosts, "_has_route", lambda: route)
    if route:
        assert problem(fetch, "http://a.example/x.mp4")[0] == "unreachable"
    else:
        with pytest.raises(MachineTrouble, match="no route to any host"):
            fetch("http://a.example/x.mp4")


# --- proxies and headers ---------------------------------------------------------------------------------------------


def test_a_proxy_gets_the_whole_address(
    fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of the sources are the proxy's matter: this machine need not know them."""
    monkeypatch.setenv("PROXY_PASSWORD", "Basic aHVzaA==")
    headers = {"Proxy-Authorization": "PROXY_PASSWORD"}
    with site.open() as port:
        proxy = f"http://127.0.0.1:{port}"
        assert fetch("http://inside.invalid/a b.mp4?x=1", proxy=proxy, headers=headers) == VIDEO
        path, sent = site.asked.pop()
        assert (path, sent["Host"]) == ("http://inside.invalid:80/a%20b.mp4?x=1", "inside.invalid:80")
        assert sent["Proxy-Authorization"] == "Basic aHVzaA=="
        for status, outcome in ((403, "forbidden"), (502, "unreachable")):
            site.answers = [(status, {}, b"")] * 4
            assert problem(fetch, "https://inside.invalid/x.mp4", proxy=proxy, headers=headers)[0] == outcome
            assert site.asked[-1][0] == "inside.invalid:443"
        site.answers = [(407, {}, b"")]
        with pytest.raises(MachineTrouble, match="407"):
            fetch("https://inside.invalid/x.mp4", proxy=proxy)
    for url in ("http://inside.invalid/x.mp4", "https://inside.invalid/x.mp4"):
        with pytest.raises(MachineTrouble, match=r"the proxy .* cannot be reached"):
            fetch(url, proxy=proxy)


def test_headers_come_from_the_environment_and_stay_with_the_rows_server(
    fetch: Callable[..., bytes], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Site()
    headers = {"Authorization": "SOURCE_TOKEN", "user-agent": "SOURCE_AGENT"}
    monkeypatch.setenv("SOURCE_TOKEN", "Bearer hunter2")
    monkeypatch.setenv("SOURCE_AGENT", "Mozilla/5.0 (contact: a@b)")
    with site.open() as port, other.open() as elsewhere:
        site.answers = [(302, {"Location": "/second"}, b""), (302, {"Location": f"http://127.0.0.1:{elsewhere}/"}, b"")]
        assert fetch(f"http://127.0.0.1:{port}/first", headers=headers) == VIDEO
        for _, sent in site.asked:
            assert sent["Authorization"] == "Bearer hunter2"
            assert {name.lower(): value for name, value in sent.items()}["user-agent"] == "Mozilla/5.0 (contact: a@b)"
        assert "Authorization" not in other.asked[0][1]
        for value in ("", "hunter2\r\nX: y", "hunt\u00e9r2"):
            monkeypatch.setenv("SOURCE_TOKEN", value)
            with pytest.raises(MachineTrouble, match="SOURCE_TOKEN") as found:
                fetch(f"http://127.0.0.1:{port}/first", headers=headers)
            assert "hunt" not in str(found.value)


def test_headers_and_proxies_are_settings_that_change_no_dataset() -> None:
    words = ["source=a", "output=b", "sources.headers={Authorization: TOKEN}", "sources.proxy=http://proxy:3128"]
    config = load_config(ShardsConfig, [], words)
    assert (config.sources.headers, config.sources.proxy) == ({"Authorization": "TOKEN"}, "http://proxy:3128")
    assert config.plan_settings() == ShardsConfig(source="a", output="b").plan_settings()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"proxy": "http://p:1", "untrusted": True}, "sources.untrusted=true"),
        ({"proxy": "http://user:hush@p:1"}, "without credentials"),
        ({"proxy": "socks5://p:1"}, "must be http://host:port"),
        ({"proxy": "p:3128"}, "must be http://host:port"),
        ({"headers": {"Range": "X"}}, "'Range' is no header that can be set"),
        ({"headers": {"A b": "X"}}, "'A b' is no header"),
        ({"headers": {"Authorization": "Bearer hush"}}, "the name of an environment variable"),
        ({"headers": {"Authorization": "X"}, "untrusted": True}, "every server that a stranger's manifest names"),
        ({"connect_s": 0.0}, "must be positive"),
        ({"first_byte_s": -1.0}, "must be positive"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as found:
        SourcesConfig(**settings)
    assert "hush" not in str(found.value)
