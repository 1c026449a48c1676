"""Connections for downloads: a host name is resolved once, and only addresses that were checked are connected to.

So the name cannot point to another address between the check and the connection. All addresses of a name are tried.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
from typing import cast
from urllib.parse import quote, urlsplit

from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.deadline import Deadline, Overdue, TimedSocket, within
from data_pipeline.source.hosts import HOSTS
from data_pipeline.source.http_problem import HttpProblem, NoConnection, Place, Silent, TryAgain
from data_pipeline.source.trouble import MachineTrouble

_ADDRESSES = 8
"""Addresses of one name that are tried."""
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            *("64:ff9b::/96", "64:ff9b:1::/48"),  # IPv4 behind a NAT64 gateway (RFC 6052, RFC 8215)
            *("2002::/16", "192.88.99.0/24", "192.0.0.0/24"),  # 6to4 and its relays (RFC 3056, RFC 7526), and RFC 6890
            *("::/96", "::ffff:0:0:0/96"),  # IPv4-compatible and -translated addresses (RFC 4291, RFC 2765)
            *("2001::/23", "fec0::/10"),  # Teredo and other protocols (RFC 2928), and addresses of a site (RFC 3879)
            *("5f00::/16", "3fff::/20"),  # segment routing inside a network, and documentation (RFC 9602, RFC 9637)
            "168.63.129.16/32",  # the service of Azure's hosts for their machines, which tells certificates and keys
        ),
    )
)
"""Networks that lead into private ones and that `ipaddress` takes for public in some releases of Python."""
_ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))
"""The middle of an IPv6 address of any network whose last four bytes are an IPv4 address (RFC 5214)."""
_INTERIM = 16
"""Interim answers (102, 103) to one request that are read over."""
_NO_HOST = re.compile(r"[\x00-\x20\x7f]")
"""Characters of no host name, which http.client refuses as if another try could help."""
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_QUERY_SAFE = _PATH_SAFE + "?"


class FinalAnswer(http.client.HTTPResponse):
    """The answer to a request, after all interim ones: http.client itself skips status 100 alone (RFC 9110, 15.2)."""

    def begin(self) -> None:
        """Read the head of the final answer. Raises: http.client.HTTPException where interim ones do not end."""
        for _ in range(_INTERIM):
            super().begin()
            if not 102 <= self.status < 200:
                return
            self.headers = None  # type: ignore[assignment]  # so that the next head is read
        raise http.client.HTTPException(f"more than {_INTERIM} interim answers")


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
    if _NO_HOST.search(host):
        raise HttpProblem("missing", "is not a valid URL: its host holds white space or a control character")
    if "@" in parts.netloc:
        raise HttpProblem("forbidden", "is redirected to a URL with credentials")
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    return Place(parts.scheme, host, port), path + (f"?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else "")


def connect(place: Place, config: SourcesConfig, deadline: Deadline) -> http.client.HTTPConnection:
    """An open connection to a place. Its socket is a `TimedSocket` that waits `config.first_byte_s` for each byte.

    Raises:
        HttpProblem: a private address where those are refused, a certificate that is not accepted, a proxy that
            refuses, or a host that did not answer a short while ago.
        NoConnection: no address of the host can be reached.
        TryAgain: the connection broke off.
        MachineTrouble: the proxy of this machine cannot be used.
        Overdue: the deadline has passed.
    """
    HOSTS.check(place)
    if config.proxy:
        return _through_proxy(place, config, deadline)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=config.first_byte_s)
    connection.response_class = FinalAnswer
    plain, address = _open(place, _addresses(place, config.untrusted, deadline), config.connect_s, deadline)
    try:
        if config.untrusted:
            _refuse_private(plain.getpeername()[0])
        secured = _secured(plain, place, deadline.left(config.connect_s)) if place.scheme == "https" else plain
        connection.sock = cast(socket.socket, TimedSocket(secured, config.first_byte_s, deadline))
    except BaseException:
        plain.close()
        raise
    HOSTS.connected(place, address)
    return connection


def _addresses(place: Place, only_public: bool, deadline: Deadline) -> list[str]:
    """The addresses of a host name. With `only_public` all of them must be public."""
    try:
        found = within(deadline, lambda: socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM))
    except socket.gaierror as error:
        words = "no name server answers for it" if error.errno == socket.EAI_AGAIN else "there is no such host"
        raise NoConnection(place, f"{place.host}: {words}", [error]) from error
    except UnicodeError as error:
        raise HttpProblem("missing", "is not a valid URL: its host is no name") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if only_public:
            _refuse_private(address)
    return addresses[:_ADDRESSES]


def _refuse_private(address: str) -> None:
    if not is_public(address):
        raise HttpProblem("forbidden", "has a private network address, which sources.untrusted=true refuses")


def _open(place: Place, addresses: list[str], connect_s: float, deadline: Deadline) -> tuple[socket.socket, str]:
    """A socket that is connected to the first address that accepts it, and this address."""
    errors: list[OSError] = []
    for address in addresses:
        try:
            return socket.create_connection((address, place.port), timeout=deadline.left(connect_s)), address
        except OSError as error:
            errors.append(error)
    kinds = ", ".join(dict.fromkeys(type(error).__name__ for error in errors))
    where = f"{place.host}:{place.port}"
    raise NoConnection(place, f"{where} accepts no connection on any of its addresses ({kinds})", errors)


def _secured(plain: socket.socket, place: Place, seconds: float) -> ssl.SSLSocket:
    """The socket with TLS. The whole handshake may take `seconds`, however many messages it has."""
    plain.settimeout(seconds)
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        raise HttpProblem("unreachable", f"its certificate is not accepted: {error.verify_message}") from error
    except TimeoutError as error:
        raise Silent(place, "the server does not agree on TLS within sources.connect_s") from error


def _through_proxy(place: Place, config: SourcesConfig, deadline: Deadline) -> http.client.HTTPConnection:
    proxy, _ = place_and_path(config.proxy)
    headers = config.header_values(only="proxy-authorization")
    connection: http.client.HTTPConnection
    if place.scheme == "https":
        connection = http.client.HTTPSConnection(proxy.host, proxy.port, timeout=deadline.left(config.connect_s))
        connection.set_tunnel(place.host, place.port, headers=headers)
    else:
        connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=deadline.left(config.connect_s))
    connection.response_class = FinalAnswer
    try:
        within(deadline, connection.connect)
    except Overdue:
        connection.close()
        raise
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise HttpProblem("unreachable", f"its certificate is not accepted: {error.verify_message}") from error
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise _proxy_failure(error, proxy) from error
    assert connection.sock is not None
    connection.sock = cast(socket.socket, TimedSocket(connection.sock, config.first_byte_s, deadline))
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
    """Whether an address is one of the public network, so that a stranger may have this machine connect to it.

    An IPv6 address that carries an IPv4 address is none: what it leads to depends on a gateway of this network.
    """
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    if any(parsed in network for network in _NOT_PUBLIC if network.version == parsed.version):
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.packed[8:12] in _ISATAP:
        return False
    return parsed.is_global and not parsed.is_multicast
