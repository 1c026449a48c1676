"""The Ray that a run starts for itself: which addresses it listens on, and what it refuses."""

from __future__ import annotations

import ipaddress
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import ray

from data_pipeline.build.config import DriverConfig, RunConfig, UnitResources
from data_pipeline.build.dataset_job import run_dataset_job
from data_pipeline.build.ray_cluster import (
    Interrupted,
    ray_cluster,
    refuse_before_planning,
    signals_raise,
    start_local_cluster,
)
from data_pipeline.build.worker import run_unit
from data_pipeline.store.base import Store
from tests.data_pipeline.build.conftest import Listener, listeners
from tests.tools.ports import free_port


def test_ray_of_our_own_is_reached_from_this_machine_only(ray_started: set[Listener]) -> None:
    """Whoever reaches the ports of a Ray cluster can run code on it."""
    listening = listeners() - ray_started
    assert {name for _, name, _, _ in listening} >= {"gcs_server", "raylet"}
    assert {ipaddress.ip_address(address).is_loopback for _, _, address, _ in listening} == {True}


ADDRESSES = """
from ray.util import get_node_ip_address
from data_pipeline.build.ray_private import loopback_address
before = get_node_ip_address()
with loopback_address():
    print(get_node_ip_address())
assert get_node_ip_address() == before
"""


def test_ray_takes_the_loopback_address_inside_the_block_only() -> None:
    """What `ray_private` replaces still decides the address: a release of Ray that has moved it fails here."""
    command = [sys.executable, "-c", ADDRESSES]  # a Ray that runs in this process would say its own address
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "127.0.0.1\n"


def test_a_ray_that_listens_to_other_machines_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a release of Ray to ignore what `ray_private` does, nothing would be built on it."""
    ended: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": "192.0.2.7"}])
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("shutdown"))
    with pytest.raises(RuntimeError, match=r"took the address 192\.0\.2\.7, where other machines could reach it"):
        start_local_cluster(1)
    assert ended == ["shutdown"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (UnitResources(cpus=3), r"run\.unit_cpus=3 is more than the 2 that Ray has on this machine"),
        (UnitResources(gpus=1), r"run\.unit_gpus=1 is more than the 0 that Ray"),
        (UnitResources(memory_bytes=10**15), r"run\.unit_memory_bytes=1e\+15 is more than the 1e\+09 that Ray"),
    ],
)
def test_a_unit_that_never_fits_is_refused_where_ray_would_wait_for_ever(
    resources: UnitResources, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("data_pipeline.build.ray_cluster.start_local_cluster", lambda cpus: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "memory": 1e9})
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("shutdown"))
    monkeypatch.setattr("data_pipeline.build.ray_cluster.end_private_ray", lambda: ended.append("token"))
    with pytest.raises(ValueError, match=message), ray_cluster(DriverConfig(), resources):
        pytest.fail("the block was entered")
    assert ended == ["shutdown", "token"]


def test_a_start_that_is_interrupted_leaves_neither_ray_nor_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def interrupted(cpus: int) -> None:
        raise Interrupted("SIGINT")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("data_pipeline.build.ray_cluster.start_local_cluster", interrupted)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("shutdown"))
    monkeypatch.setattr("data_pipeline.build.ray_cluster.end_private_ray", lambda: ended.append("token"))
    with pytest.raises(Interrupted), signals_raise(), ray_cluster(DriverConfig(), UnitResources()):
        pytest.fail("the block was entered")
    assert ended == ["shutdown", "token"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (RunConfig(unit_cpus=1e6), r"run\.unit_cpus=1000000 is more than the \d+ that Ray has on this machine"),
        (RunConfig(unit_memory_bytes=10**18), r"run\.unit_memory_bytes=1e\+18 is more than the \d+ that Ray has"),
        (RunConfig(address="head"), r"run\.address=head must be HOST:PORT"),
        (RunConfig(scratch="/dev/null/x"), r"run\.scratch=/dev/null/x cannot be made: Not a directory"),
    ],
)
def test_units_that_can_never_run_are_refused_before_anything_is_planned(
    run: RunConfig, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def planned(store: Store) -> NoReturn:
        pytest.fail("it was planned")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=message):
        run_dataset_job(run, str(tmp_path), planned, run_unit, "a-unit", gpus=0)


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:70000", "local", "ray://head"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    refused = pytest.raises(ValueError, match=rf"run\.address={address} must be HOST:PORT, ray://HOST:PORT or auto")
    with refused, ray_cluster(DriverConfig(address=address), UnitResources()):
        pytest.fail("the block was entered")


def test_what_is_no_address_in_rays_own_variable_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS=head must be HOST:PORT"):
        refuse_before_planning(DriverConfig(), UnitResources())
    with (
        pytest.raises(ValueError, match=r"^RAY_ADDRESS=head must be HOST:PORT"),
        ray_cluster(DriverConfig(), UnitResources()),
    ):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("kind", ["{}", "ray://{}"])
def test_where_nothing_answers_ray_is_not_asked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    address = kind.format(f"127.0.0.1:{free_port()}")
    refused = pytest.raises(ConnectionError, match=rf"no Ray cluster answers at run\.address={address}: .* refused; ")
    with refused, ray_cluster(DriverConfig(address=address), UnitResources()):
        pytest.fail("the block was entered")


def test_the_token_and_the_session_of_our_own_ray_are_closed_to_other_users(ray_started: set[Listener]) -> None:
    """Every user of the machine reaches the loopback address."""
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert token != Path.home() / ".ray" / "auth_token"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)] == [0o600, 0o700]
    opened = {file.path for process in psutil.Process().children(recursive=True) for file in process.open_files()}
    session = next(Path(path) for path in opened if "/session_" in path)
    closed = next(parent for parent in session.parents if parent.name == f"vidtwin-{os.getuid()}")
    assert (stat.S_IMODE(closed.stat().st_mode), closed.stat().st_uid) == (0o700, os.getuid())
    assert any((closed / "ray").glob("session_*/sockets/raylet*"))
