"""Web hosts that do not answer are asked once, and the network of this machine is no fault of a row."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.source import hosts
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.hosts import Hosts
from data_pipeline.source.http_problem import HttpProblem, NoConnection, Place
from data_pipeline.source.trouble import MachineTrouble
from tests.data_pipeline.source.web_site import VIDEO, Site, counted_connections, named, problem
from tests.tools.ports import free_port
from trainer.config.loader import load_config

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
        memory.silent(place, silence, time.monotonic())
        memory.silent(place, silence, time.monotonic())
        memory.check(place)
        memory.answered(place)
    for _ in range(3):
        memory.silent(place, silence, time.monotonic())
    with pytest.raises(HttpProblem, match="no answer"):
        memory.check(place)
    memory.check(Place("https", "host", 443))


def test_a_host_that_answers_other_downloads_is_not_silent() -> None:
    """Three files that hang are waited for at once, while the host gives a fourth one."""
    memory, place = Hosts(), Place("http", "host", 80)
    begun = time.monotonic()
    memory.answered(place)
    for _ in range(3):
        memory.silent(place, HttpProblem("unreachable", "no answer"), begun)
    memory.check(place)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Hosts()
    for number in range(3000):
        place = Place("http", f"host-{number}", 80)
        memory.connected(place, "192.0.2.1")
        memory.silent(place, HttpProblem("unreachable", "x"), time.monotonic())
        memory.answered(place)
        memory.silent(place, HttpProblem("unreachable", "x"), time.monotonic())
    assert len(memory._answered) == len(memory._silent) == len(memory._last_answer) == 1024


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


def test_one_address_of_a_host_that_refuses_is_an_answer_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other address is silent, and so is the host that answered before: it may be down without being the cause."""
    silence = TimeoutError("timed out")
    counted_connections(monkeypatch, {"192.0.2.1": silence})
    memory, place, problem = Hosts(), Place("http", "two.example", 80), HttpProblem("unreachable", "no answer")
    memory.connected(Place("http", "one.example", 80), "192.0.2.1")
    memory.give_up(NoConnection(place, "refused", [ConnectionRefusedError("refused"), silence]), problem)
    with pytest.raises(HttpProblem, match="no answer"):
        memory.check(place)
    with pytest.raises(MachineTrouble, match=r"answered before \(one\.example\)"):
        memory.give_up(NoConnection(place, "silent", [silence, silence]), problem)


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
            agents = [value for name, value in sent.items() if name.lower() == "user-agent"]
            assert agents == ["Mozilla/5.0 (contact: a@b)"]
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
