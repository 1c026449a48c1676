"""What web servers answer: addresses, statuses, redirects, pages in place of videos; and what they are asked with."""

from __future__ import annotations

import email.utils
import errno
import gzip
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.trouble import MachineTrouble
from tests.data_pipeline.source.web_site import VIDEO, Site, counted_connections, named, problem
from trainer.config.loader import load_config


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


def test_a_date_beyond_the_calendar_asks_for_no_wait(fetch: Callable[..., bytes], site: Site) -> None:
    site.answers = [(503, {"Retry-After": "Fri, 99 Dec 99999999999 00:00:00 GMT"}, b"")]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO


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
