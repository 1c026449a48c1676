"""A small dataset for the tests of this folder, in a folder and in an imitation of S3."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.data_pipeline.dataset.tiny_dataset import split_into_shards, write_dataset
from tests.data_pipeline.read.loading import CLIPS, upload


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiny"), split_into_shards(CLIPS, (4, 1, 6, 0, 2)))


@pytest.fixture(scope="module")
def moto_bucket() -> Iterator[str]:
    """An imitation of S3 in this process, and a bucket in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**settings, "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"  # moto's memory outlives its server
        boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
        yield bucket
    server.stop()


@pytest.fixture(scope="module")
def shared_uri(moto_bucket: str, root: Path) -> str:
    """The dataset on S3, not to be changed."""
    upload(root, f"s3://{moto_bucket}/shared")
    return f"s3://{moto_bucket}/shared"


@pytest.fixture
def own_uri(moto_bucket: str, root: Path) -> str:
    """A copy of the dataset on S3 for one test."""
    uri = f"s3://{moto_bucket}/{uuid.uuid4().hex}"
    upload(root, uri)
    return uri
