"""`s3://` rows of a stranger's manifest: whose credentials they are read with, and how long that may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.trouble import MachineTrouble
from tests.tools.web import QuietHandler, serving

PROFILES = """
[profile web]
aws_access_key_id = KEY-OF-THE-PROFILE
aws_secret_access_key = secret-of-the-profile
region = us-east-1
endpoint_url = http://127.0.0.1:{port}

[profile by-service]
aws_access_key_id = KEY-OF-THE-PROFILE
aws_secret_access_key = secret-of-the-profile
region = us-east-1
services = own

[services own]
s3 =
    endpoint_url = http://127.0.0.1:{port}

[profile without-keys]
region = us-east-1
endpoint_url = http://127.0.0.1:{port}
"""


@dataclass
class Bucket:
    """A server that answers every request with one object, and what it was asked."""

    port: int = 0
    slow: str = ""  # "head" or "body": what never ends
    size: int = 4
    content: bytes = b"\0ata"
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Authorization
    ended: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A store for sources. Everything of the environment leads to the operator's own store, which is not there."""
    found = Bucket()

    class Handler(QuietHandler):
        def answer(self, body: bool) -> None:
            found.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            self.send_response(200)
            if body and found.slow == "head":
                while not found.ended.wait(0.1):
                    self.wfile.write(b"X: y\r\n" if not self.headers_sent() else b"")
                return
            self.send_header("Content-Length", str(found.size))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if body and found.slow == "body":
                while not found.ended.wait(0.1):
                    self.wfile.write(b"a")
            elif body:
                self.wfile.write(found.content)

        def headers_sent(self) -> bool:
            self.flush_headers()
            return False

        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

    config = tmp_path / "aws"
    for name, value in {
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_ACCESS_KEY_ID": "KEY-OF-THE-OPERATOR",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-operator",
        "AWS_SESSION_TOKEN": "token-of-the-operator",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with serving(Handler) as found.port:
        config.write_text(PROFILES.format(port=found.port))
        yield found
        found.ended.set()


def fetch(video: str, folder: Path, base: str = "/nowhere", **settings: Any) -> bytes:
    usual: dict[str, Any] = {"untrusted": True, "attempts": 1, "timeout_s": 20.0}
    return Sources(base, SourcesConfig(**(usual | settings))).fetch(video, folder).read_bytes()


@pytest.mark.parametrize(
    ("base", "video"),
    [
        ("/nowhere", "s3://private-of-operator/never-shared.mp4"),
        ("/nowhere", "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/point/x.mp4"),
        ("s3://strangers/web", "s3://private-of-operator/never-shared.mp4"),
        ("s3://strangers/web", "s3://strangers/webs/private.mp4"),
        ("s3://strangers/web", "s3://strangers/private.mp4"),
        ("s3://strangers/web", "../private.mp4"),
        ("s3://strangers/web", "a/../../private.mp4"),
        ("s3://strangers", "s3://strangers-too/private.mp4"),
        ("http://strangers", "s3://strangers/private.mp4"),
    ],
)
def test_the_operators_credentials_read_nothing_outside_the_sources_place(
    base: str, video: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bucket.port}")
    with pytest.raises(SourceProblem, match=r"sources\.untrusted=true refuses; name a profile") as problem:
        fetch(video, tmp_path, base)
    assert problem.value.error == "forbidden"
    assert bucket.asked == []


def test_what_lies_at_the_place_that_the_operator_named_is_read(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bucket.port}")
    assert fetch("a.mp4", tmp_path, "s3://strangers/web") == b"\0ata"
    assert fetch("s3://strangers/web/b/c.mp4", tmp_path, "s3://strangers/web") == b"\0ata"
    assert {path for _, path, _ in bucket.asked} == {"/strangers/web/a.mp4", "/strangers/web/b/c.mp4"}


@pytest.mark.parametrize("profile", ["web", "by-service"])
@pytest.mark.parametrize("untrusted", [True, False])
def test_a_profile_for_sources_brings_its_keys_and_its_endpoint(
    profile: str, untrusted: bool, bucket: Bucket, tmp_path: Path
) -> None:
    assert fetch("s3://any/x.mp4", tmp_path, s3_profile=profile, untrusted=untrusted) == b"\0ata"
    assert [(method, path) for method, path, _ in bucket.asked] == [("HEAD", "/any/x.mp4"), ("GET", "/any/x.mp4")]
    for _, _, authorization in bucket.asked:
        assert "Credential=KEY-OF-THE-PROFILE/" in authorization
        assert "OPERATOR" not in authorization


@pytest.mark.parametrize(
    ("profile", "words"), [("without-keys", "has no keys of its own"), ("nobody", r"nobody\) could not be found")]
)
def test_a_profile_without_keys_does_not_fall_back_on_the_operators(
    profile: str, words: str, bucket: Bucket, tmp_path: Path
) -> None:
    with pytest.raises(MachineTrouble, match=rf"sources\.s3_profile={profile}.*{words}.*AWS configuration"):
        fetch("s3://any/x.mp4", tmp_path, s3_profile=profile)
    assert bucket.asked == []


def test_a_proxy_of_the_environment_is_not_asked(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch("s3://any/x.mp4", tmp_path, s3_profile="web") == b"\0ata"


def test_an_object_that_is_no_video_is_not_kept(bucket: Bucket, tmp_path: Path) -> None:
    bucket.content = b"<!DOCTYPE html><title>Sign in"
    bucket.size = len(bucket.content)
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(SourceProblem, match="the object is ") as problem:
        fetch("s3://any/x.mp4", folder, s3_profile="web")
    assert problem.value.error == "not_a_video"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_store_that_never_ends_costs_no_more_than_the_deadline(slow: str, bucket: Bucket, tmp_path: Path) -> None:
    bucket.slow, bucket.size = slow, 1 << 30
    with pytest.raises(SourceProblem, match=r"took longer than sources\.deadline_s=0\.9") as problem:
        fetch("s3://any/x.mp4", tmp_path, s3_profile="web", deadline_s=0.9, timeout_s=60.0)
    assert problem.value.error == "timeout"


def test_an_object_that_is_larger_than_the_store_said_is_not_kept(bucket: Bucket, tmp_path: Path) -> None:
    bucket.size = 1 << 40
    with pytest.raises(SourceProblem) as problem:
        fetch("s3://any/x.mp4", tmp_path, s3_profile="web", max_bytes=1000)
    assert problem.value.error == "too_large"
