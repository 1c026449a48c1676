"""Model directories at s3:// addresses, on a real gateway and on an imitation of one."""

import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from model.fetch import fetch
from model.vidtwin import VidTwin
from tests.model.tiny_vidtwin import tiny, video_for


@pytest.fixture
def moto_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"  # moto's memory outlives its server
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    server.stop()


def check(uri: str, folder: Path) -> None:
    """What was saved, copied to `uri` and loaded from there encodes as before."""
    model = tiny().eval()
    model.save_pretrained(folder)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    for file in folder.iterdir():
        boto3.session.Session().client("s3").upload_file(str(file), bucket, f"{prefix}/{file.name}".lstrip("/"))
    found = VidTwin.from_pretrained(uri)
    assert not found.training
    assert torch.equal(found.encode(video_for(model)).structure, model.encode(video_for(model)).structure)


@pytest.mark.s3
def test_a_model_is_loaded_from_a_bucket(tmp_path: Path, s3_uri: str) -> None:
    check(f"{s3_uri}/models/tiny", tmp_path)


@pytest.mark.parametrize("prefix", ["", "/models/tiny/"])
def test_any_prefix(moto_uri: str, tmp_path: Path, prefix: str) -> None:
    check(f"{moto_uri}{prefix}", tmp_path)


def test_what_is_not_there_is_named(moto_uri: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{moto_uri}/none/config\.yaml cannot be read \(404\)"):
        VidTwin.from_pretrained(f"{moto_uri}/none")
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/model/config\.yaml"):
        VidTwin.from_pretrained("s3://no-such-bucket/model")


class BreaksOff(BaseHTTPRequestHandler):
    """A store that announces 100 bytes and sends 10."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in (("Content-Length", "100"), ("ETag", '"a"')):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"0123456789")

    def log_message(self, *_: object) -> None: ...


def test_a_store_that_breaks_off_each_time_is_a_failed_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name, value in (("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_DEFAULT_REGION", "r")):
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match=r"^s3://b/m/config\.yaml cannot be read \(.*100"):
            fetch("s3://b/m", ("config.yaml",), tmp_path)
        server.shutdown()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["ftp://host/model", "s3:///model", "s3://key:secret@bucket/model"])
def test_other_addresses_are_refused_without_their_secrets(uri: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read from; name a local folder, or s3://bucket/prefix") as refusal:
        VidTwin.from_pretrained(uri)
    assert "secret" not in str(refusal.value)
