"""The Ray cluster that a run uses: one that is named, or one started on this machine for the run."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from data_pipeline.build.config import DriverConfig, UnitResources
from data_pipeline.build.ray_private import loopback_address
from data_pipeline.build.ray_token import end_private_ray, private_ray, refuse_open_ray

_OBJECT_STORE_BYTES = 100 << 20
"""Ray's shared memory when Ray is started here. It holds only reports, which are tiny: clips never go through Ray."""

ANSWER_S = 10.0
"""How long a named cluster may take to answer."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Everything that is committed stays, and the same command goes on from there."""


@contextmanager
def ray_cluster(config: DriverConfig, resources: UnitResources) -> Iterator[None]:
    """Ray for the time of a run: the connection of this process, else the named cluster, else a Ray started here.

    Raises:
        ValueError: `run.address` or `RAY_ADDRESS` is no address, there is no running cluster for `auto`, or a unit asks
            for more than the Ray started here has.
        OSError: nothing answers there.
        RuntimeError: Ray did not start.
    """
    if ray.is_initialized():
        yield
        return
    address, named = _named_cluster(config)
    if address:
        _check_answers(address, named)
    try:  # a start that is refused or interrupted half-way is ended as well
        if address:
            _join(address, named)
        else:
            start_local_cluster(config.cpus)
            _refuse_units_that_never_fit(resources)
        _install(_raise_interrupted)  # ray.init has put its own handler of SIGTERM in place
        yield
    finally:
        _install(signal.SIG_IGN)  # the shutdown takes seconds, and a second Ctrl-C must not leave half a cluster
        ray.shutdown()
        end_private_ray()
        _install(_raise_interrupted)


def _named_cluster(config: DriverConfig) -> tuple[str, str]:
    """The address of the cluster that is named, "" for none; and the setting or Ray's own variable that names it."""
    if config.address:
        return config.address, f"run.address={config.address}"
    address = os.environ.get("RAY_ADDRESS", "")
    return address, f"RAY_ADDRESS={address}"


def _join(address: str, named: str) -> None:
    """Connect this process to a cluster. Raises: ValueError."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster at {named}: {error}; leave it empty to start one here") from error


def _check_answers(address: str, named: str) -> None:
    """Ask the named host for a connection first, because Ray itself would go on trying for minutes.

    Args:
        named: the address with what names it, for messages.
    Raises:
        ValueError: it is no address.
        OSError: nothing answers there.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{named} must be HOST:PORT, ray://HOST:PORT or auto; empty starts a Ray here")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {named}: {error.strerror or error}; start one there with `ray start --head`, "
            "or leave it empty to start one on this machine"
        ) from error


def _refuse_units_that_never_fit(resources: UnitResources) -> None:
    """Ray would wait for a larger node for ever. Raises: ValueError."""
    available = ray.cluster_resources()
    for key, name, amount in (
        ("cpus", "CPU", resources.cpus),
        ("gpus", "GPU", resources.gpus),
        ("memory_bytes", "memory", resources.memory_bytes),
    ):
        if amount > available.get(name, 0.0):
            raise ValueError(
                f"run.unit_{key}={amount:g} is more than the {available.get(name, 0.0):g} that Ray has on this machine"
                "; lower it, or name a larger cluster with run.address"
            )


def refuse_before_planning(config: DriverConfig, resources: UnitResources) -> None:
    """Refuse a cluster that does not answer, or units that are too large for this machine, before anything is written.

    What the Ray of a named cluster has, or one that runs already in this process, is not known here.

    Raises:
        ValueError: naming the setting and the remedy.
        OSError: nothing answers at the address.
    """
    if ray.is_initialized() and not config.address:
        return
    address, named = _named_cluster(config)
    if address:
        _check_answers(address, named)
    else:
        refuse_open_ray()
        _refuse_more_than_this_machine_has(config, resources)


def _refuse_more_than_this_machine_has(config: DriverConfig, resources: UnitResources) -> None:
    """Refuse units for a Ray that will be started here, which will have a part of the memory. Raises: ValueError."""
    cores = config.cpus or os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for key, amount, most in (("cpus", resources.cpus, cores), ("memory_bytes", resources.memory_bytes, memory)):
        if amount > most:
            raise ValueError(
                f"run.unit_{key}={amount:.9g} is more than the {most} that Ray has on this machine; lower it, or "
                "name a larger cluster with run.address"
            )


def refuse_missing_gpus(config: DriverConfig, resources: UnitResources, gpus: int) -> None:
    """Refuse units that ask for a GPU of this machine which it does not have, before anything is planned.

    What the Ray of a named cluster has, or one that runs already in this process, is not known here.

    Args:
        gpus: GPUs of this machine.
    Raises:
        ValueError: naming the setting and the remedy.
    """
    elsewhere = config.address or os.environ.get("RAY_ADDRESS", "") or ray.is_initialized()
    if resources.gpus > gpus and not elsewhere:
        raise ValueError(
            f"run.unit_gpus={resources.gpus:g} is more than the {gpus} GPUs that torch can use on this machine; set "
            "run.unit_gpus=0 to compute on its processor, or name a cluster with run.address"
        )


def start_local_cluster(cpus: int = 0, gpus: int | None = None) -> None:
    """Start a Ray for this process and this user alone: on the loopback address, with a token, without a dashboard.

    Args:
        cpus: cores that Ray gives to units; 0 takes all cores of the machine.
        gpus: GPUs that Ray gives to units; None takes those that Ray finds.
    Raises:
        ValueError: the environment turns Ray's token off, or the folder for Ray's files belongs to another user.
        RuntimeError: the machine is too busy for Ray to start, or Ray would listen to other machines.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to third parties
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no warning about GPUs that nobody asks for
    private_ray()
    for attempt in range(3):
        try:
            with loopback_address():
                ray.init(
                    address="local",
                    num_cpus=cpus or None,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    object_store_memory=_OBJECT_STORE_BYTES,
                )
            _refuse_other_machines()
            return
        except Exception as error:  # Ray gives its processes 30 s and raises nothing narrower
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            print(f"Ray did not start in time (attempt {attempt + 1} of 3): the machine is busy", flush=True)
    raise RuntimeError("Ray did not start; is the machine out of memory or cores? run the same command again")


def _refuse_other_machines() -> None:
    """Refuse a Ray whose ports others may reach, because they could run code on it. Raises: RuntimeError."""
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
    if addresses != {"127.0.0.1"}:
        raise RuntimeError(
            f"Ray {ray.__version__} took the address {', '.join(sorted(addresses))}, where other machines could reach "
            "it, in place of 127.0.0.1; install a release that setup.py allows, or name a cluster with run.address"
        )


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
