"""Fixtures: a real S3 server (Ceph's object gateway) and an address inside it. Tests that use them are marked `s3`."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from tests.tools.ports import free_port

SCRIPT = Path(__file__).parents[2] / "tools" / "rgw.sh"
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")


@dataclass(frozen=True)
class Gateway:
    """A running S3 server."""

    endpoint: str
    access_key: str = "test"
    secret_key: str = "testsecret12"

    def environment(self) -> dict[str, str]:
        """What a client process needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture(scope="session")
def s3_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests of a session; up in some six seconds."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        pytest.skip(f"no S3 gateway: {', '.join(absent)} not installed (Debian: radosgw ceph-mon ceph-osd ceph-common)")
    folder = tmp_path_factory.mktemp("gateway") / "ceph"
    port = free_port(neighbour=1000)  # the monitor's
    started = subprocess.run([SCRIPT, "start", folder, str(port)], timeout=120, check=False)
    try:
        log = Path(f"{folder}.start.log")
        assert started.returncode == 0, log.read_text()[-3000:] if log.exists() else "the gateway did not start"
        yield Gateway(f"http://127.0.0.1:{port}")
    finally:
        subprocess.run([SCRIPT, "stop", folder], timeout=60, check=False)


@pytest.fixture
def s3_uri(s3_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix` of a bucket that is new for each test; the environment points at the gateway."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_gateway.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"
