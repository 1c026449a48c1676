"""The Ray cluster that a build uses: one that is there, or one started on this machine for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node

from data_pipeline.build.config import RunConfig, ShardsConfig

_OBJECT_STORE_BYTES = 100 << 20
"""Ray's shared memory, when the cluster is started here: reports are tiny and clips never go through it."""


_UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")
"""What a node of Ray's starts, and a cluster for one build does without."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Everything committed stays; the same command goes on."""


@contextmanager
def ray_cluster(config: ShardsConfig) -> Iterator[None]:
    """Ray for the time of a run: the cluster that was named, or one of our own; a connection that is there is used."""
    if ray.is_initialized():
        yield
        return
    address = config.run.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster at run.address={address!r}: {error}; leave it empty to start one here"
            ) from error
    else:
        start_local_cluster(config.run.cpus)
        _refuse_units_that_never_fit(config.run)
    _install(_raise_interrupted)  # ray.init puts its own SIGTERM handler in place
    try:
        yield
    finally:
        _install(signal.SIG_IGN)  # the shutdown takes seconds; a second Ctrl-C must not leave half a cluster
        ray.shutdown()
        _install(_raise_interrupted)


def _refuse_units_that_never_fit(run: RunConfig) -> None:
    """Ray would wait for a larger node for ever. Raises: ValueError."""
    there = ray.cluster_resources()
    for key, wanted, name in (("cpus", run.unit_cpus, "CPU"), ("memory_bytes", run.unit_memory_bytes, "memory")):
        if wanted > there.get(name, 0.0):
            ray.shutdown()
            raise ValueError(f"run.unit_{key}={wanted:g} is more than the {there.get(name, 0.0):g} that Ray has here")


def start_local_cluster(cpus: int = 0) -> None:
    """A Ray for this process, on the loopback address and without dashboard; `cpus` 0 takes all cores.

    Raises: RuntimeError when the machine is too busy for Ray to come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to third parties
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about GPUs we do not ask for
    for attempt in range(3):
        try:
            with _on_loopback(), _few_processes():
                ray.init(
                    address="local",
                    num_cpus=cpus or None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    object_store_memory=_OBJECT_STORE_BYTES,
                )
            return
        except Exception as error:  # Ray gives its processes 30 s and raises nothing narrower
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            print(f"Ray did not start in time (attempt {attempt + 1} of 3): the machine is busy", flush=True)
    raise RuntimeError("Ray did not start; is the machine out of memory or cores? run the same command again")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray take 127.0.0.1 for this machine's address, as it does on macOS: who reaches its ports can run code."""
    before = ray_constants.ENABLE_RAY_CLUSTER  # Ray has no public setting for this
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _few_processes() -> Iterator[None]:
    """Have Ray start without what one build has no use for, which halves what its start costs.

    That is its autoscaler, its web server, which it starts for no pages as well, and the reader of the workers' logs,
    whose lines nobody would show. Ray has no public setting for any of them.
    """
    before = {name: getattr(Node, name) for name in _UNUSED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda self, *words, **more: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def _install(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` inside the block; the handlers of before come back after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _install(_raise_interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
