"""Downloads from web servers that nobody vouches for: time, size, redirects are bounded, broken streams are resumed."""

from __future__ import annotations

import email.utils
import errno
import http.client
import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote, urljoin, urlsplit

from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.connection import connect, place_and_path
from data_pipeline.source.deadline import Deadline, Overdue, TimedSocket
from data_pipeline.source.hosts import HOSTS
from data_pipeline.source.http_problem import HttpProblem, NoConnection, Place, Silent, TryAgain
from data_pipeline.source.not_video import what_it_is
from data_pipeline.source.trouble import MachineTrouble
from data_pipeline.store.base import pause_seconds

_CHUNK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 528), 529})
"""Statuses that may pass; those from 520 on are the ones of Cloudflare and its like."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SILENT_TRIES = 2
"""Tries of one download for which a server sends no byte of an answer."""
_RESOLVER_TRIES = 3
"""Tries when no name server answers; each can take the resolver half a minute."""
_OUR_DISK = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
"""Failures of the local disk or of this machine. They fail the unit, because the row is not at fault."""


_DIGITS = 18
"""Digits of the longest length that is believed. Python itself refuses to read thousands of them."""
_CONTENT_RANGE = re.compile(rf"bytes[ =]\s*(\d{{1,{_DIGITS}}})-\d*(?:/(\d{{1,{_DIGITS}}})\s*$)?", re.IGNORECASE)
"""The first byte of a part, and the bytes of the whole object where the server knows them."""


@dataclass
class _Progress:
    """State of a download, kept from try to try."""

    url: str
    received: int = 0  # bytes in the file
    most: int = 0  # bytes that the file had at any time
    total: int | None = None  # bytes of the whole object, where the server says
    validator: str = ""  # ETag or Last-Modified, which identifies the version of the object


def download(url: str, target: Path, config: SourcesConfig) -> None:
    """Write the body of `url` to `target`. After a problem no file is left.

    Raises:
        HttpProblem: missing (404, 410), forbidden (401, 403, or a private address when those are refused), too_large,
            empty, not_a_video (a page or an archive), redirected too often, unreachable, or past the deadline.
        MachineTrouble: the network or the proxy of this machine fails, or a header has no value here.
        OSError: the disk of `target` is full or broken.
    """
    deadline = Deadline.after(config.deadline_s)
    progress = _Progress(url)
    try:
        with target.open("wb") as file:
            _download(file, progress, config, deadline)
        if not progress.received:
            raise HttpProblem("empty", "has no bytes")
        if name := what_it_is(target):
            raise HttpProblem("not_a_video", f"the server sent {name}")
    except Overdue as error:
        target.unlink(missing_ok=True)
        raise HttpProblem("timeout", str(error)) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _download(file: BinaryIO, progress: _Progress, config: SourcesConfig, deadline: Deadline) -> None:
    failures = 0
    while True:
        before = progress.most
        try:
            _attempt(file, progress, config, deadline)
            return
        except MachineTrouble:
            raise
        except (TryAgain, OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _OUR_DISK:
                raise
            failures = 1 if progress.most > before else failures + 1
            if failures >= _tries(error, config.attempts):
                raise _given_up(error, failures, deadline.begun) from error
            pause = max(pause_seconds(failures), error.wait_s if isinstance(error, TryAgain) else 0.0)
            if pause > deadline.left(math.inf):
                raise deadline.overdue() from error
            time.sleep(pause)


def _tries(error: Exception, attempts: int) -> int:
    """How often a download is tried that fails in this way.

    A host that does not exist, or has never accepted a connection from this process, is asked once.
    """
    if isinstance(error, NoConnection) and not HOSTS.has_answered(error.place):
        return min(attempts, _RESOLVER_TRIES) if error.may_pass else 1
    return min(attempts, _SILENT_TRIES) if isinstance(error, Silent) else attempts


def _given_up(error: Exception, failures: int, since: float) -> HttpProblem:
    """The problem of a download that began at `since` and will not be tried again.

    Raises: MachineTrouble, as `Hosts.give_up`.
    """
    if isinstance(error, NoConnection):
        problem = HttpProblem("unreachable", str(error))
        HOSTS.give_up(error, problem)
        return problem
    reason = str(error) if isinstance(error, TryAgain) else type(error).__name__
    problem = HttpProblem("unreachable", f"failed {failures} times, last: {reason}")
    if isinstance(error, Silent):
        HOSTS.silent(error.place, problem, since)
    return problem


def _attempt(file: BinaryIO, progress: _Progress, config: SourcesConfig, deadline: Deadline) -> None:
    """One request with its redirects. It asks for the bytes after those already received."""
    url = progress.url
    first, _ = place_and_path(url)
    cookies = False
    for _ in range(config.redirects + 1):
        place, path = place_and_path(url)
        connection = connect(place, config, deadline)
        try:
            answer = _asked(connection, place, path, _headers(progress, config, own=place == first), config)
            if answer.status in _REDIRECTS:
                url = _next_url(url, answer.getheader("Location"))
                cookies = cookies or answer.getheader("Set-Cookie") is not None
                continue
            if answer.status == 416 and progress.received:  # the object is another one now, or the server has no ranges
                raise _begin_again(progress, "the server has not the rest of a download that broke off (416)")
            _check_status(answer, config)
            _receive(answer, file, progress, config)
            return
        finally:
            connection.close()
    why = "; its server sets cookies, which are not kept" if cookies else ""
    raise HttpProblem("redirected", f"is redirected more than sources.redirects={config.redirects} times{why}")


def _asked(
    connection: http.client.HTTPConnection, place: Place, path: str, headers: dict[str, str], config: SourcesConfig
) -> http.client.HTTPResponse:
    """The head of the answer to a request."""
    line = cast(TimedSocket, connection.sock)
    if config.proxy and place.scheme == "http":
        host = f"[{place.host}]" if ":" in place.host else place.host
        path = f"http://{host}:{place.port}{path}"
        headers |= config.header_values(only="proxy-authorization")
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
    except TimeoutError as error:
        raise Silent(place, f"no answer within sources.first_byte_s={config.first_byte_s:g}") from error
    HOSTS.answered(place)
    line.idle_s = config.timeout_s
    return answer


def _headers(progress: _Progress, config: SourcesConfig, *, own: bool) -> dict[str, str]:
    """The headers of a request. Those of `sources.headers` go to the row's own server alone, not where it redirects."""
    headers = {"User-Agent": "vidtwin-data-pipeline", "Accept-Encoding": "identity"}
    if own:
        given = config.header_values()
        named = {name.lower() for name in given}
        headers = {name: value for name, value in headers.items() if name.lower() not in named} | given
    if progress.received:
        headers["Range"] = f"bytes={progress.received}-"
        if progress.validator:
            headers["If-Range"] = progress.validator
    return headers


def _next_url(url: str, location: str | None) -> str:
    if not location:
        raise TryAgain("a redirect without a target")
    try:
        target = urljoin(url, _text_of(location))
        scheme = urlsplit(target).scheme
    except ValueError as error:
        raise HttpProblem("missing", "is redirected to something that is no URL") from error
    if scheme not in ("http", "https"):
        raise HttpProblem("forbidden", "is redirected to something other than http(s)")
    if url.startswith("https:") and not target.startswith("https:"):
        raise HttpProblem("forbidden", "is redirected from https to http")
    return target


def _text_of(location: str) -> str:
    """A Location as its server meant it: http.client reads its bytes as Latin-1, and most servers send UTF-8."""
    raw = location.strip().encode("latin-1", "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return quote(raw, safe="".join(map(chr, range(33, 127))))


def _check_status(answer: http.client.HTTPResponse, config: SourcesConfig) -> None:
    if answer.status in (404, 410):
        raise HttpProblem("missing", f"the server answered {answer.status}")
    if answer.status in _TRANSIENT:
        raise TryAgain(f"the server answered {answer.status}", _retry_after(answer.getheader("Retry-After")))
    if answer.status == 407 and config.proxy:
        raise MachineTrouble("the proxy wants other credentials (407)")
    if answer.status not in (200, 203, 206):
        raise HttpProblem("forbidden", f"the server answered {answer.status}")


def _retry_after(text: str | None) -> float:
    """Seconds that a server asks to wait: it names them, or a date (RFC 9110, section 10.2.3). 0 for neither."""
    text = (text or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _receive(answer: http.client.HTTPResponse, file: BinaryIO, progress: _Progress, config: SourcesConfig) -> None:
    coding = (answer.getheader("Content-Encoding") or "").strip().lower()
    if coding in ("br", "deflate", "compress"):
        raise HttpProblem("not_a_video", f"the server sent it compressed ({coding}), although it was asked not to")
    if answer.status == 206:
        _take_range(answer, progress)
    else:  # the whole object: the server has no ranges, or the object has changed
        progress.received, progress.total = 0, _content_length(answer)
    if not progress.received:
        file.seek(0)
        file.truncate()
        progress.validator = _strong_validator(answer)
    _check_size(progress.total or 0, config)
    while chunk := answer.read1(_CHUNK):
        _check_size(progress.received + len(chunk), config)
        file.write(chunk)
        progress.received += len(chunk)
        progress.most = max(progress.most, progress.received)
    if progress.total is not None and progress.received < progress.total:
        raise TryAgain(f"the stream ended after {progress.received} of {progress.total} bytes")


def _take_range(answer: http.client.HTTPResponse, progress: _Progress) -> None:
    """Look at which part of the object a server sends (RFC 9110, section 14.4), whether it was asked for one or not.

    Raises:
        TryAgain: the part does not continue what was received. The next try begins the download again.
    """
    found = _CONTENT_RANGE.match(answer.getheader("Content-Range") or "")
    if found is None or int(found[1]) != progress.received:
        raise _begin_again(progress, "the server sent another range than the requested one")
    total = int(found[2]) if found[2] else progress.total
    if progress.received and progress.total not in (None, total):
        raise _begin_again(progress, f"the object has {total} bytes now, and had {progress.total} before")
    progress.total = total


def _begin_again(progress: _Progress, reason: str) -> TryAgain:
    """Forget what was received, because the rest of it cannot be had. Gives what is to be raised."""
    progress.received, progress.total, progress.validator = 0, None, ""
    return TryAgain(reason)


def _content_length(answer: http.client.HTTPResponse) -> int | None:
    """Bytes of the body, or None where only the end of the stream tells."""
    length = answer.getheader("Content-Length") or ""
    counted = length.isdecimal() and len(length) <= _DIGITS and not answer.getheader("Transfer-Encoding")
    return int(length) if counted else None


def _strong_validator(answer: http.client.HTTPResponse) -> str:
    etag = answer.getheader("ETag") or ""
    return etag if etag and not etag.startswith("W/") else (answer.getheader("Last-Modified") or "")


def _check_size(size: int, config: SourcesConfig) -> None:
    if size > config.max_bytes:
        raise HttpProblem("too_large", f"is larger than sources.max_bytes={config.max_bytes}")
