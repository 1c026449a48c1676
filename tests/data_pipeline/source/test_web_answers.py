"""What web servers answer: addresses, statuses, redirects, pages in place of videos; and what they are asked with."""

from __future__ import annotations

import bz2
import email.utils
import errno
import gzip
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data_pipeline.source.web_site import VIDEO, Site, counted_connections, named, problem


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
        (b"<script>location = 'x'</script>", {}, "an HTML page"),
        ("<html><body>gone</body></html>".encode("utf-16"), {}, "an HTML page"),
        (b"<Error><Code>NoSuchKey</Code></Error>", {}, "an XML document"),
        (b'{ "error": "gone" }', {}, "a JSON text"),
        (b"[\n  {}]", {}, "a JSON text"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n", {}, "a playlist"),
        (bz2.compress(VIDEO), {}, "bzip2 data"),
        (tarfile.TarInfo("v.mp4").tobuf(), {}, "a tar archive"),
        (cv2.imencode(".jpg", np.zeros((8, 8, 3)))[1].tobytes(), {}, "a JPEG picture"),
        (cv2.imencode(".png", np.zeros((8, 8, 3)))[1].tobytes(), {}, "a PNG picture"),
        (b"anything", {"Content-Encoding": "br"}, "compressed (br)"),
        (b"Access denied", {}, "plain text: Access denied"),
        (b"\xef\xbb\xbfToo many\r\n\trequests\n", {}, "plain text: Too many requests"),
        ("acc\u00e8s refus\u00e9 \u202b\u05d0".encode(), {}, "plain text: acc\u00e8s refus\u00e9 \u05d0"),
        ("\u9650\u6d41".encode("utf-16"), {}, "plain text: \u9650\u6d41"),
        (b"x" * 511 + "\u00e9".encode(), {}, f"plain text: {'x' * 80}..."),
        (b"see https://a/b?X-Amz-Signature=0123abcd", {}, "plain text: see https://a/b?X-Amz-Signature=***"),
        (b" \r\n\n", {}, "a blank text"),
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


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("v.y4m", b"YUV4MPEG2 W4 H4 F25:1 C420\nFRAME\n" + b"P" * 24),
        ("v_4x4_25.yuv", b"P" * 24),
        ("w_4x4_25.yuv", b"\xff\xd8\xff" + b"P" * 21),
        ("v.gif", b"GIF89a" + b"P" * 7),
        ("v.mp4", b"a text\x00and bytes"),
        ("w.mp4", "a text of Latin-1: \u00e9".encode("latin-1")),
    ],
)
def test_what_could_be_a_video_is_left_to_the_decoder(
    name: str, body: bytes, fetch: Callable[..., bytes], site: Site
) -> None:
    """A flat picture in `P` grey makes text of the pixels of two formats without compression."""
    site.answers = [(200, {}, body)]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/{name}") == body


def test_a_download_whose_rest_is_not_there_begins_again(fetch: Callable[..., bytes], site: Site) -> None:
    """RFC 9110, section 15.5.17: the range that was asked for lies behind the end of what is there now."""
    site.answers = [(200, {"Content-Length": "999", "ETag": '"one"'}, VIDEO), (416, {}, b"")]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO
        assert [headers.get("Range") for _, headers in site.asked] == [None, f"bytes={len(VIDEO)}-", None]
        site.answers = [(416, {}, b"")]
        assert problem(fetch, f"http://127.0.0.1:{port}/x.mp4")[0] == "forbidden"


CUT = (200, {"Content-Length": str(len(VIDEO)), "ETag": '"one"'}, VIDEO[:10])
"""A whole object that breaks off after 10 bytes."""


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        pytest.param([CUT, (206, {"Content-Range": "bytes 4-21/22"}, VIDEO[4:])], [10, None], id="another range"),
        pytest.param([CUT, (206, {}, VIDEO[10:])], [10, None], id="a range that is not named"),
        pytest.param([CUT, (206, {"Content-Range": "bytes 10-98/99"}, b"x" * 89)], [10, None], id="of another length"),
        pytest.param([CUT, (206, {"Content-Range": "bytes=10-21/*"}, VIDEO[10:])], [10], id="of unknown length"),
        pytest.param([CUT, (206, {"Content-Range": "Bytes 10-21/22"}, VIDEO[10:])], [10], id="in capitals"),
        pytest.param([CUT, (200, {}, VIDEO)], [10], id="the whole in place of the rest"),
        pytest.param(
            [CUT, (206, {"Content-Range": "bytes 10-19/22"}, VIDEO[10:20])], [10, 20], id="a part of the rest"
        ),
        pytest.param([(206, {"Content-Range": "bytes 0-9/22"}, VIDEO[:10])], [10], id="a part that nobody asked for"),
        pytest.param([(206, {"Content-Range": "bytes 0-21/22"}, VIDEO)], [], id="all as a part"),
        pytest.param([(203, {}, VIDEO)], [], id="from a proxy that says so"),
    ],
)
def test_parts_are_joined_only_where_they_belong_together(
    answers: list[tuple[int, dict[str, str], bytes]],
    ranges: list[int | None],
    fetch: Callable[..., bytes],
    site: Site,
) -> None:
    """The site answers with the whole video once the answers are used up, as a server that ignores ranges."""
    site.answers = list(answers)
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO
    wanted = [None, *(None if begin is None else f"bytes={begin}-" for begin in ranges)]
    assert [headers.get("Range") for _, headers in site.asked] == wanted


def test_a_download_that_never_gets_further_is_given_up(fetch: Callable[..., bytes], site: Site) -> None:
    """Each whole object breaks off at the same byte, and the server has no rest of it."""
    site.answers = [CUT, (416, {}, b"")] * 9
    with site.open() as port:
        error, detail = problem(fetch, f"http://127.0.0.1:{port}/x.mp4", attempts=4)
    assert (error, len(site.asked)) == ("unreachable", 4)
    assert "failed 4 times, last: the server has not the rest" in detail


def test_a_server_that_redirects_until_it_sees_its_cookie_is_named(fetch: Callable[..., bytes], site: Site) -> None:
    for headers, words in (({"Set-Cookie": "a=1"}, "cookies, which are not kept"), ({}, "=5 times")):
        site.answers = [(302, {"Location": "/x.mp4"} | headers, b"")] * 9
        with site.open() as port:
            error, detail = problem(fetch, f"http://127.0.0.1:{port}/x.mp4")
        assert error == "redirected"
        assert detail.endswith(words)


def test_interim_answers_are_read_over(fetch: Callable[..., bytes], site: Site) -> None:
    """RFC 9110, section 15.2: a client must be able to read one or more of them before the final answer."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(VIDEO) + VIDEO
    site.answers = [(102, {}, interim + whole), (102, {}, interim * 20)]
    with site.open() as port:
        assert fetch(f"http://127.0.0.1:{port}/x.mp4") == VIDEO
        assert problem(fetch, f"http://127.0.0.1:{port}/x.mp4", attempts=1)[0] == "unreachable"
