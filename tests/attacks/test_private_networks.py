"""Addresses that lead into the operator's own network, however they are written (`sources.untrusted=true`)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from data_pipeline.source import connection
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.connection import is_public
from data_pipeline.source.http import download
from data_pipeline.source.http_problem import HttpProblem

INTO_PRIVATE_NETWORKS = [
    *("64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:ffff::1"),
    *("2002:a9fe:a9fe::", "2002:7f00:1::", "2002:808:808::1", "::127.0.0.1", "::169.254.169.254", "::8.8.8.8"),
    *("::ffff:0:127.0.0.1", "::ffff:0:a9fe:a9fe", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    *("fec0::1", "feff:ffff::1", "fe80::1%eth0", "fe80::1%1", "fd12:3456::1", "fc00::1", "::", "::1"),
    *("192.88.99.1", "192.88.99.255", "192.0.0.8", "198.18.0.1", "240.0.0.1", "255.255.255.255", "0.1.2.3"),
    *("168.63.129.16", "5f00::1", "3fff::1", "2a00:1450::5efe:10.0.0.1", "2a00:1450::200:5efe:127.0.0.1"),
    *("2001::1", "2001:db8::1", "100::1", "ff02::1", "ff0e::1", "224.0.0.251", "100.127.255.255"),
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "192.88.98.1",
    "192.88.100.1",
    "168.63.129.17",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "2003::1",
]


@pytest.mark.parametrize("address", INTO_PRIVATE_NETWORKS)
def test_an_address_into_a_private_network_is_none_of_the_public_one(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    """The neighbours of the refused networks among them."""
    assert is_public(address)


def test_the_address_that_is_connected_to_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the connection to end elsewhere than at the address that was checked, no request would be sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def connect_elsewhere(*_: object, **__: object) -> socket.socket:
            connected = socket.socket()
            connected.connect(("127.0.0.1", port))
            return connected

        monkeypatch.setattr(connection.socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("8.8.8.8", port))])
        monkeypatch.setattr(connection.socket, "create_connection", connect_elsewhere)
        with pytest.raises(HttpProblem, match="private network address") as refused:
            download(f"http://public.example:{port}/v.mp4", tmp_path / "v", SourcesConfig(untrusted=True, attempts=1))
        assert refused.value.error == "forbidden"
        peer, _ = server.accept()
        with peer:
            peer.settimeout(30.0)
            assert peer.recv(1) == b"", "the connection is closed, and nothing was sent"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
def test_a_proxy_of_the_environment_is_not_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to private addresses on a stranger's behalf."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(HttpProblem, match="private network address"):
            download("http://10.0.0.1/v.mp4", tmp_path / "v", SourcesConfig(untrusted=True, attempts=1))
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_an_explicit_proxy_is_refused_unless_it_refuses_private_networks_itself() -> None:
    with pytest.raises(ValueError, match=r"sources\.proxy cannot be used.*sources\.proxy_filters=true"):
        SourcesConfig(untrusted=True, proxy="http://proxy:3128")
    assert SourcesConfig(untrusted=True, proxy="http://proxy:3128", proxy_filters=True).proxy
    with pytest.raises(ValueError, match=r"sources\.proxy_filters=true says something of sources\.proxy"):
        SourcesConfig(untrusted=True, proxy_filters=True)
