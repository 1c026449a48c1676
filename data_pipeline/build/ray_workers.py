"""Where units are worked on: tasks of Ray for a function, actors of Ray for a class that holds state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import ray
from ray.exceptions import RayError, RayTaskError

from data_pipeline.build.config import UnitResources
from data_pipeline.build.unit_body import Report, StatefulBody
from data_pipeline.outside.redaction import errors_without_secrets

LOST = 10
"""Times a unit may go down with its process or node before it counts as failed: that is rarely the unit's fault."""
_WAIT_S = 1.0
"""Longest wait for a report, after which the progress line and the size of the cluster are looked at again."""

Reference: TypeAlias = Any  # ray.ObjectRef
Actor: TypeAlias = Any  # ray.actor.ActorHandle


class Workers(Protocol):
    """Where units are worked on."""

    def prepare(self, waiting: int) -> None:
        """Start what so many waiting units need and the cluster has room for."""

    def has_room(self) -> bool:
        """Whether a unit may be started now."""

    def start(self, unit: int) -> Reference:
        """Start a unit; the reference stands for its report."""

    def wait(self) -> list[Reference]:
        """The units that ended, when there is one within `_WAIT_S`."""

    def report(self, reference: Reference) -> Report:
        """The report of a unit that ended. Raises: RayError."""

    def end(self) -> None:
        """Give back what is held."""


class Tasks:
    """Each unit is a task, and Ray chooses the process."""

    def __init__(
        self, job: Any, body: Callable[[Any, int], Report], resources: UnitResources, in_flight: int, name: str
    ) -> None:
        # All tasks have one name: Ray's driver counts tasks by name for ever, with 7 kB for each name, which is a
        # gigabyte for 150 000 units. A process that has held a GPU ends with its task, because CUDA never gives the
        # memory back before that; other processes go on to the next unit.
        options = {**_options(resources), "max_retries": 0, "max_calls": 1 if resources.gpus else 0}
        self._task = ray.remote(**options)(_without_secrets(body)).options(name=name)
        self._job = ray.put(job)
        self._resources, self._in_flight = resources, in_flight
        self._running: dict[Reference, None] = {}  # the oldest first
        self._limit = 0

    def prepare(self, waiting: int) -> None:
        self._limit = self._in_flight or max(8, 2 * _room(self._resources))

    def has_room(self) -> bool:
        return len(self._running) < self._limit

    def start(self, unit: int) -> Reference:
        reference = self._task.remote(self._job, unit)
        self._running[reference] = None
        return reference

    def wait(self) -> list[Reference]:
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_WAIT_S)
        return ready

    def report(self, reference: Reference) -> Report:
        del self._running[reference]
        return ray.get(reference)

    def end(self) -> None:
        """Tasks hold nothing."""


class Actors:
    """Each process keeps one instance of a class and does one unit at a time.

    A unit is given only to an actor that has started. An actor for which the cluster has no room now, because another
    job uses it or the rest is spread over nodes in pieces, so keeps no unit waiting.

    An actor is replaced when a unit fails in it: what it holds, such as a CUDA context after an error, may have become
    useless, and an actor that fails at once would be free at once, too, and take all units.
    """

    def __init__(
        self, job: Any, body: Callable[[Any], StatefulBody], resources: UnitResources, in_flight: int, name: str
    ) -> None:
        self._class = ray.remote(**_options(resources), max_restarts=0, max_task_retries=0)(_Holder)
        self._job, self._body, self._name = ray.put(job), body, name
        self._resources, self._in_flight = resources, in_flight
        self._starting: dict[Reference, Actor] = {}
        self._idle: list[Actor] = []
        self._busy: dict[Reference, Actor] = {}
        self._died_starting = 0  # in a row

    def prepare(self, waiting: int) -> None:
        limit = min(self._in_flight or max(1, _room(self._resources)), waiting + len(self._busy))
        while len(self._starting) + len(self._idle) + len(self._busy) < limit:
            actor = self._class.remote(self._body, self._job)
            self._starting[actor.started.remote()] = actor

    def has_room(self) -> bool:
        return bool(self._idle)

    def start(self, unit: int) -> Reference:
        actor = self._idle.pop()
        reference = actor.run.options(name=self._name).remote(unit)
        self._busy[reference] = actor
        return reference

    def wait(self) -> list[Reference]:
        ready, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=_WAIT_S)
        for reference in ready:
            if reference in self._starting:
                self._has_started(reference)
        return [reference for reference in ready if reference in self._busy]

    def _has_started(self, reference: Reference) -> None:
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._died_starting += 1
            if self._died_starting == LOST:
                raise RuntimeError(f"{LOST} actors in a row died while they started: {reason(error)}") from error
        else:
            self._died_starting = 0
            self._idle.append(actor)

    def report(self, reference: Reference) -> Report:
        actor = self._busy.pop(reference)
        try:
            report = ray.get(reference)
        except RayError:
            ray.kill(actor)
            raise
        self._idle.append(actor)
        return report

    def end(self) -> None:
        """End the actors, which would otherwise hold their GPUs as long as this process is connected to Ray."""
        for actor in (*self._starting.values(), *self._idle, *self._busy.values()):
            ray.kill(actor)


class _Holder:
    """What an actor runs. It makes the body's instance with the first unit, so that an error there is the unit's."""

    def __init__(self, body: Callable[[Any], StatefulBody], job: Any) -> None:
        self._body, self._job = body, job
        self._instance: StatefulBody | None = None

    def started(self) -> None:
        """Answers as soon as the actor has its place on a node."""

    def run(self, unit: int) -> Report:
        with errors_without_secrets():
            if self._instance is None:
                self._instance = self._body(self._job)
            return self._instance.run(unit)


def _without_secrets(body: Callable[[Any, int], Report]) -> Callable[[Any, int], Report]:
    """The body with errors that hold no secrets of its machine: Ray keeps their text, and the driver prints it."""

    @functools.wraps(body)
    def run(job: Any, unit: int) -> Report:
        with errors_without_secrets():
            return body(job, unit)

    return run


def _options(resources: UnitResources) -> dict[str, Any]:
    """What Ray sets aside, as options of a task or an actor."""
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus or None,
        "memory": resources.memory_bytes or None,
    }


def _room(resources: UnitResources) -> int:
    """Units that fit on all nodes of the cluster together at the same time."""
    cluster = ray.cluster_resources()
    return int(min(cluster.get(name, 0.0) / amount for name, amount in _amounts(resources).items()))


def hosts(resources: UnitResources) -> set[str]:
    """Names of the machines of the cluster that have room for a unit, when they do nothing else."""
    amounts = _amounts(resources)
    return {
        node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in amounts.items())
    }


def _amounts(resources: UnitResources) -> dict[str, float]:
    """What a unit asks for, by Ray's own names."""
    amounts = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_bytes}
    return {name: amount for name, amount in amounts.items() if amount}


def reason(error: RayError) -> str:
    """Kind and first line of what went wrong on the worker."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0] if text else ''}"
