"""Connections for downloads: a host name is resolved once, and only addresses that were checked are connected to.

So the name cannot point to another address between the check and the connection. All addresses of a name are tried.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
from urllib.parse import quote, urlsplit

from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.hosts import HOSTS
from data_pipeline.source.http_problem import HttpProblem, NoConnection, Place, Silent, TryAgain
from data_pipeline.source.trouble import MachineTrouble

_ADDRESSES = 8
"""Addresses of one name that are tried."""
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_QUERY_SAFE = _PATH_SAFE + "?"


def place_and_path(url: str) -> tuple[Place, str]:
    """Where a URL's server is, and the path and query to request.

    Raises:
        HttpProblem: the text is no URL, or it holds credentials.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        host.encode("idna")
    except ValueError as error:
        raise HttpProblem("missing", "is not a valid URL") from error
    if parts.scheme not in ("http", "https"):
        raise HttpProblem("missing", "has another scheme than http, https and s3")
    if not host:
        raise HttpProblem("missing", "is not a valid URL: it names no host")
    if "@" in parts.netloc:
        raise HttpProblem("forbidden", "is redirected to a URL with credentials")
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    return Place(parts.scheme, host, port), path + (f"?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else "")


def connect(place: Place, config: SourcesConfig) -> http.client.HTTPConnection:
    """An open connection to a place. Its socket waits `config.first_byte_s` for each byte.

    Raises:
        HttpProblem: a private address where those are refused, a certificate that is not accepted, a proxy that
            refuses, or a host that did not answer a short while ago.
        NoConnection: no address of the host can be reached.
        TryAgain: the connection broke off.
        MachineTrouble: the proxy of this machine cannot be used.
    """
    HOSTS.check(place)
    if config.proxy:
        return _through_proxy(place, config)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=config.first_byte_s)
    plain, address = _open(place, _addresses(place, config.untrusted), config.connect_s)
    try:
        connection.sock = _secured(plain, place) if place.scheme == "https" else plain
        connection.sock.settimeout(config.first_byte_s)
    except BaseException:
        plain.close()
        raise
    HOSTS.connected(place, address)
    return connection


def _addresses(place: Place, only_public: bool) -> list[str]:
    """The addresses of a host name. With `only_public` all of them must be public."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        words = "no name server answers for it" if error.errno == socket.EAI_AGAIN else "there is no such host"
        raise NoConnection(place, f"{place.host}: {words}", [error]) from error
    except UnicodeError as error:
        raise HttpProblem("missing", "is not a valid URL: its host is no name") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if only_public and not is_public(address):
            raise HttpProblem("forbidden", "has a private network address, which sources.untrusted=true refuses")
    return addresses[:_ADDRESSES]


def _open(place: Place, addresses: list[str], connect_s: float) -> tuple[socket.socket, str]:
    """A socket that is connected to the first address that accepts it, and this address."""
    errors: list[OSError] = []
    for address in addresses:
        try:
            return socket.create_connection((address, place.port), timeout=connect_s), address
        except OSError as error:
            errors.append(error)
    kinds = ", ".join(dict.fromkeys(type(error).__name__ for error in errors))
    where = f"{place.host}:{place.port}"
    raise NoConnection(place, f"{where} accepts no connection on any of its addresses ({kinds})", errors)


def _secured(plain: socket.socket, place: Place) -> ssl.SSLSocket:
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        raise HttpProblem("unreachable", f"its certificate is not accepted: {error.verify_message}") from error
    except TimeoutError as error:
        raise Silent(place, "the server does not agree on TLS within sources.connect_s") from error


def _through_proxy(place: Place, config: SourcesConfig) -> http.client.HTTPConnection:
    proxy, _ = place_and_path(config.proxy)
    headers = config.header_values(only="proxy-authorization")
    connection: http.client.HTTPConnection
    if place.scheme == "https":
        connection = http.client.HTTPSConnection(proxy.host, proxy.port, timeout=config.connect_s)
        connection.set_tunnel(place.host, place.port, headers=headers)
    else:
        connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=config.connect_s)
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise HttpProblem("unreachable", f"its certificate is not accepted: {error.verify_message}") from error
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise _proxy_failure(error, proxy) from error
    assert connection.sock is not None
    connection.sock.settimeout(config.first_byte_s)
    return connection


def _proxy_failure(error: OSError | http.client.HTTPException, proxy: Place) -> Exception:
    """What a proxy's refusal means: http.client says `Tunnel connection failed: STATUS WORDS`."""
    refused = re.match(r"Tunnel connection failed: (\d+)", str(error))
    if refused is None:
        if isinstance(error, ssl.SSLError | http.client.HTTPException):
            return TryAgain(type(error).__name__)
        return MachineTrouble(f"the proxy {proxy.host}:{proxy.port} cannot be reached ({type(error).__name__})")
    status = int(refused[1])
    if status == 407:
        return MachineTrouble(f"the proxy {proxy.host}:{proxy.port} wants other credentials (407)")
    if status >= 500 or status in (408, 429):
        return TryAgain(f"the proxy answered {status}")
    return HttpProblem("forbidden", f"the proxy answered {status}")


def is_public(address: str) -> bool:
    """Whether an address is one of the public network."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed.is_global and not parsed.is_multicast
