"""Fixtures of the cluster tests: shards that two hosts can read, and an undisturbed run as the truth for all others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.cluster.hosts import MachineRoom, missing_tools
from tests.cluster.training import TwoHosts, write_config, write_shards
from tests.data_pipeline.store.gateway import PROGRAMS, Gateway


@pytest.fixture(scope="session")
def two_hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Two cabled hosts; the shards are on a real S3 server where one is installed, else in the folder both see."""
    if reason := missing_tools():
        pytest.skip(reason)
    gateway = request.getfixturevalue("s3_gateway") if all(map(shutil.which, PROGRAMS)) else None
    ports = [int(gateway.endpoint.rsplit(":", 1)[1])] if gateway else []
    with MachineRoom(["node-0", "node-1"], forward_ports=ports) as room:
        local = write_shards(room.folder / "shards")
        shards = _upload(local, gateway) if gateway else str(local)
        # None of these reaches the ranks unless it is named here, not even from the node where the command is given.
        keys = gateway.environment() if gateway else {}
        room.write_deepspeed_env(GLOO_SOCKET_IFNAME="eth0", OMP_NUM_THREADS="1", **keys)
        write_config(room.folder / "tiny.yaml")
        yield TwoHosts(room, shards)


@pytest.fixture(scope="session")
def undisturbed(two_hosts: TwoHosts) -> Path:
    """A run from start to end."""
    run = two_hosts.room.folder / "undisturbed"
    # With the short timeout that accidents are tried with, a rank would give up one that a busy machine starts late.
    two_hosts.train(run, "collective_timeout=4").succeed(two_hosts.START_S)
    return run


def _upload(folder: Path, gateway: Gateway) -> str:
    store = boto3.client(
        "s3",
        endpoint_url=gateway.endpoint,
        aws_access_key_id=gateway.access_key,
        aws_secret_access_key=gateway.secret_key,
        region_name="us-east-1",
    )
    store.create_bucket(Bucket="cluster-test")
    for file in folder.rglob("*"):
        if file.is_file():
            store.upload_file(str(file), "cluster-test", f"shards/{file.relative_to(folder)}")
    return "s3://cluster-test/shards"
