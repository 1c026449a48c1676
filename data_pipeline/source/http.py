"""Downloads from web servers that nobody vouches for: time, size and redirects are bounded, broken streams are resumed.

A host name is resolved once, and the connection goes to the address that was checked. So the name cannot point to
another address between the check and the connection.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from data_pipeline.source.config import SourcesConfig
from data_pipeline.store.base import pause_seconds

_CHUNK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OUR_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Failures of the local disk. They fail the unit, because the row is not at fault."""


class HttpProblem(Exception):
    """A download was given up. `error` is a stable slug. The message never contains the query of a URL."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class _TryAgain(Exception):
    """A failure that another try may not meet."""


@dataclass
class _Progress:
    """State of a download, kept from try to try."""

    url: str
    received: int = 0  # bytes in the file
    total: int | None = None  # bytes of the whole object, where the server says
    validator: str = ""  # ETag or Last-Modified, which identifies the version of the object


def download(url: str, target: Path, config: SourcesConfig) -> None:
    """Write the body of `url` to `target`. After a problem no file is left.

    Raises:
        HttpProblem: missing (404, 410), forbidden (401, 403, or a private address when those are refused), too_large,
            empty, redirected too often, unreachable after every try, or past the deadline.
        OSError: the disk of `target` is full or broken.
    """
    deadline = time.monotonic() + config.deadline_s
    progress = _Progress(url)
    try:
        with target.open("wb") as file:
            _download(file, progress, config, deadline)
        if not progress.received:
            raise HttpProblem("empty", "has no bytes")
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _download(file: BinaryIO, progress: _Progress, config: SourcesConfig, deadline: float) -> None:
    failures = 0
    while True:
        before = progress.received
        try:
            _attempt(file, progress, config, deadline)
            return
        except (_TryAgain, OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _OUR_DISK:
                raise
            failures = 1 if progress.received > before else failures + 1
            if failures >= config.attempts:
                reason = str(error) if isinstance(error, _TryAgain) else type(error).__name__
                raise HttpProblem("unreachable", f"failed {failures} times, last: {reason}") from error
            pause = pause_seconds(failures)
            if time.monotonic() + pause > deadline:
                raise HttpProblem("timeout", f"took longer than sources.deadline_s={config.deadline_s:g}") from error
            time.sleep(pause)


def _attempt(file: BinaryIO, progress: _Progress, config: SourcesConfig, deadline: float) -> None:
    """One request with its redirects. It asks for the bytes after those already received."""
    url = progress.url
    for _ in range(config.redirects + 1):
        connection, path = _connect(url, config)
        try:
            connection.request("GET", path, headers=_headers(progress))
            answer = connection.getresponse()
            if answer.status in _REDIRECTS:
                url = _next_url(url, answer.getheader("Location"))
                continue
            _check_status(answer)
            _receive(answer, file, progress, config, deadline)
            return
        finally:
            connection.close()
    raise HttpProblem("redirected", f"is redirected more than sources.redirects={config.redirects} times")


def _headers(progress: _Progress) -> dict[str, str]:
    headers = {"User-Agent": "vidtwin-data-pipeline", "Accept-Encoding": "identity"}
    if progress.received:
        headers["Range"] = f"bytes={progress.received}-"
        if progress.validator:
            headers["If-Range"] = progress.validator
    return headers


def _next_url(url: str, location: str | None) -> str:
    if not location:
        raise _TryAgain("a redirect without a target")
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError as error:
        raise HttpProblem("missing", "is redirected to something that is no URL") from error
    if scheme not in ("http", "https"):
        raise HttpProblem("forbidden", "is redirected to something other than http(s)")
    if url.startswith("https:") and not target.startswith("https:"):
        raise HttpProblem("forbidden", "is redirected from https to http")
    return target


def _check_status(answer: http.client.HTTPResponse) -> None:
    if answer.status in (404, 410):
        raise HttpProblem("missing", f"the server answered {answer.status}")
    if answer.status in _TRANSIENT:
        raise _TryAgain(f"the server answered {answer.status}")
    if answer.status not in (200, 206):
        raise HttpProblem("forbidden", f"the server answered {answer.status}")


def _receive(
    answer: http.client.HTTPResponse, file: BinaryIO, progress: _Progress, config: SourcesConfig, deadline: float
) -> None:
    if answer.status == 206 and not (answer.getheader("Content-Range") or "").startswith(f"bytes {progress.received}-"):
        raise _TryAgain("the server sent another range than the requested one")
    if answer.status == 200:  # the whole object: the server has no ranges, or the object has changed
        progress.received = 0
        file.seek(0)
        file.truncate()
        progress.total = _content_length(answer)
        progress.validator = _strong_validator(answer)
    _check_size(progress.total or 0, config)
    while chunk := answer.read1(_CHUNK):
        _check_size(progress.received + len(chunk), config)
        file.write(chunk)
        progress.received += len(chunk)
        if time.monotonic() > deadline:
            raise HttpProblem("timeout", f"took longer than sources.deadline_s={config.deadline_s:g}")
    if progress.total is not None and progress.received < progress.total:
        raise _TryAgain(f"the stream ended after {progress.received} of {progress.total} bytes")


def _content_length(answer: http.client.HTTPResponse) -> int | None:
    """Bytes of the body, or None where only the end of the stream tells."""
    length = answer.getheader("Content-Length") or ""
    return int(length) if length.isdecimal() and not answer.getheader("Transfer-Encoding") else None


def _strong_validator(answer: http.client.HTTPResponse) -> str:
    etag = answer.getheader("ETag") or ""
    return etag if etag and not etag.startswith("W/") else (answer.getheader("Last-Modified") or "")


def _check_size(size: int, config: SourcesConfig) -> None:
    if size > config.max_bytes:
        raise HttpProblem("too_large", f"is larger than sources.max_bytes={config.max_bytes}")


def _connect(url: str, config: SourcesConfig) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the checked address of a URL, and the path to request."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        host.encode("idna")
    except ValueError as error:
        raise HttpProblem("missing", "is not a valid URL") from error
    if "@" in parts.netloc:
        raise HttpProblem("forbidden", "is redirected to a URL with credentials")
    address = _resolve(host, port, config.untrusted)
    connection = http.client.HTTPConnection(host, port, timeout=config.timeout_s)
    plain = socket.create_connection((address, port), timeout=config.timeout_s)
    try:
        connection.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=host) if parts.scheme == "https" else plain
        )
    except BaseException:
        plain.close()
        raise
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return connection, path + (f"?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else "")


_QUERY_SAFE = "/%:@!$&'()*+,;=~-._?"


def _resolve(host: str, port: int, only_public: bool) -> str:
    """The first address of a host name. With `only_public` all its addresses must be public."""
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if only_public and not _is_public(address):
            raise HttpProblem("forbidden", "has a private network address, which sources.untrusted=true refuses")
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed.is_global and not parsed.is_multicast
