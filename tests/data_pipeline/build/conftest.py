"""One Ray for the tests of this folder, a bench for units, and what an undisturbed build of made-up clips gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from data_pipeline.build.ray_cluster import start_local_cluster
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub
from tests.data_pipeline.build.bench import Bench

ROWS = 24
Listener = tuple[int, str, str, int]


def listeners() -> set[Listener]:
    """Where this process and its descendants wait for connections: process, its name, address, port."""
    this = psutil.Process()
    sockets: set[Listener] = set()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            sockets |= {
                (process.pid, process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            }
    return sockets


@pytest.fixture(scope="package")
def ray_started() -> Iterator[set[Listener]]:
    """A Ray with two cores and two GPUs, whatever the machine has. Gives what was listening here before the start."""
    before = listeners()
    start_local_cluster(2, 2)
    yield before
    ray.shutdown()


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 sources, which are six units."""
    return stub.write_sources(tmp_path_factory.mktemp("sources"), ROWS)


@pytest.fixture(scope="package")
def undisturbed(ray_started: set[Listener], source: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A dataset built on Ray without any trouble."""
    store = LocalStore(tmp_path_factory.mktemp("undisturbed"))
    assert stub.build(stub.config_of(source, store.root)).run.done == ROWS // 4
    return store


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A planned unit of stub sources."""
    return Bench(tmp_path)
