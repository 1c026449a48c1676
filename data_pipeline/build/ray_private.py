"""The one private part of Ray that this project uses: which address Ray takes for this machine.

`ray.init` always asks for the address under which other machines reach this one, and then listens on all addresses.
Neither `_node_ip_address` nor `ray start --node-ip-address` changes that: both replace a loopback address by the
outer one. On macOS and Windows, where Ray does without clusters, it takes 127.0.0.1 and listens there alone. The
environment variable for this choice (`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`) is read only while Ray is imported, when
nobody knows yet whether the run starts a Ray of its own or joins a cluster, so its result is replaced here.
`tests/data_pipeline/build/test_ray_cluster.py` fails when Ray changes this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants


@contextmanager
def loopback_address() -> Iterator[None]:
    """Inside the block a Ray that is started takes 127.0.0.1 for this machine's address, as it does on macOS."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
