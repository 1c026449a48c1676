"""Any body on a real Ray: a function as tasks, a class as actors on GPUs that are only declared to Ray."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from data_pipeline.build.config import DriverConfig, UnitResources
from data_pipeline.build.driver import UnitsRun, run_units
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_workers import LOST
from tests.data_pipeline.build import bodies
from tests.data_pipeline.build.bodies import Job, WithState

UNITS = 8
ON_A_CORE = UnitResources(cpus=1.0)
ON_A_GPU = UnitResources(cpus=0.5, gpus=1.0)
FUNCTION, ACTORS = (bodies.function, ON_A_CORE), (WithState, ON_A_GPU)

pytestmark = pytest.mark.usefixtures("ray_started")


def run(job: Job, body: Any, resources: UnitResources, config: DriverConfig | None = None) -> UnitsRun:
    progress = Progress(UNITS, 0, 2 * UNITS, 3600.0, items_name="latents", stream=io.StringIO())
    config = config or DriverConfig(attempts=2)
    return run_units(job, range(UNITS), body, config=config, resources=resources, progress=progress, name="test-unit")


def instances(folder: Path) -> int:
    return len((folder / "instances").read_text().splitlines())


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def wait_for_free_gpus() -> None:
    """Both GPUs are free again: Ray hears of the end of a process a moment later."""
    wait_for(lambda: ray.available_resources().get("GPU") == 2.0, "the actors still hold a GPU")


@pytest.mark.parametrize(("body", "resources"), [FUNCTION, ACTORS])
def test_every_unit_is_done_once(body: Any, resources: UnitResources, tmp_path: Path) -> None:
    result = run(Job(str(tmp_path)), body, resources)
    assert (result.done, result.items, result.failed) == (UNITS, UNITS, {})
    assert bodies.results(tmp_path) == [unit for unit, *_ in sorted(bodies.begins(tmp_path))] == list(range(UNITS))


@pytest.mark.parametrize(("body", "resources"), [FUNCTION, pytest.param(*ACTORS, marks=pytest.mark.slow)])
def test_a_process_that_dies_costs_no_unit_and_counts_none_twice(
    body: Any, resources: UnitResources, tmp_path: Path
) -> None:
    result = run(Job(str(tmp_path), killed_once=frozenset({0, 3, 7})), body, resources)
    assert (result.done, result.items, result.failed) == (UNITS, UNITS, {})
    assert bodies.results(tmp_path) == list(range(UNITS))
    begun = Counter(unit for unit, *_ in bodies.begins(tmp_path))
    assert begun == {unit: 2 if unit in (0, 3, 7) else 1 for unit in range(UNITS)}


@pytest.mark.parametrize(("body", "resources"), [pytest.param(*FUNCTION, marks=pytest.mark.slow), ACTORS])
def test_a_unit_that_raises_is_tried_again_and_then_reported(
    body: Any, resources: UnitResources, tmp_path: Path
) -> None:
    job = Job(str(tmp_path), failing_once=frozenset({1}), failing_always=frozenset({5}))
    result = run(job, body, resources, DriverConfig(attempts=3))
    assert result.failed == {5: "OSError: no route to the store from unit 5"}
    assert (result.done, result.items) == (UNITS - 1, UNITS - 1)
    assert bodies.results(tmp_path) == [0, 1, 2, 3, 4, 6, 7]
    begun = Counter(unit for unit, *_ in bodies.begins(tmp_path))
    assert (begun[1], begun[5]) == (2, 3)


def test_a_unit_that_takes_down_each_of_its_processes_is_given_up(tmp_path: Path) -> None:
    result = run(Job(str(tmp_path), killed_always=frozenset({2})), bodies.function, ON_A_CORE)
    assert list(result.failed) == [2]
    assert result.done == UNITS - 1
    assert Counter(unit for unit, *_ in bodies.begins(tmp_path))[2] == LOST


def test_each_actor_has_a_gpu_of_its_own_and_keeps_its_state(tmp_path: Path) -> None:
    result = run(Job(str(tmp_path), together=2), WithState, ON_A_GPU)
    assert result.done == UNITS
    places = {(process, gpus) for _, process, gpus in bodies.begins(tmp_path)}
    assert {gpus for _, gpus in places} == {"0", "1"}
    assert len(places) == instances(tmp_path) == 2
    wait_for_free_gpus()


def test_an_actor_is_replaced_when_it_dies_or_a_unit_fails_in_it(tmp_path: Path) -> None:
    job = Job(str(tmp_path), killed_once=frozenset({2}), failing_once=frozenset({4}))
    result = run(job, WithState, ON_A_GPU, DriverConfig(in_flight=1))
    assert (result.done, result.failed) == (UNITS, {})
    processes = [process for _, process, _ in bodies.begins(tmp_path)]
    assert instances(tmp_path) == len(set(processes)) == 3
    order = [unit for unit, *_ in bodies.begins(tmp_path)]
    assert order == [0, 1, 2, 3, 4, 5, 6, 7, 2, 4], "what is to be tried again goes to the end"
    assert processes[:3] == processes[:1] * 3
    assert processes[3:5] == processes[3:4] * 2
    assert processes[5:] == processes[5:6] * 5


def test_a_class_that_cannot_be_made_fails_its_units_with_the_reason(tmp_path: Path) -> None:
    result = run(Job(str(tmp_path), unusable=True), WithState, ON_A_GPU, DriverConfig(attempts=1, max_failed=2))
    assert list(result.failed.values()) == ["FileNotFoundError: model.safetensors is missing"] * 2
    assert result.done == 0


def test_an_actor_without_a_place_keeps_no_unit_waiting(tmp_path: Path) -> None:
    """The cluster has two GPUs, but another job holds one of them all the time."""

    class Other:
        def ready(self) -> None:
            pass

    other = ray.remote(num_cpus=0, num_gpus=1)(Other).remote()
    ray.get(other.ready.remote(), timeout=60)
    result = run(Job(str(tmp_path)), WithState, ON_A_GPU)
    assert result.done == UNITS
    assert instances(tmp_path) == 1
    ray.kill(other)
    wait_for_free_gpus()


def test_a_run_in_which_everything_fails_stops_early(tmp_path: Path) -> None:
    job = Job(str(tmp_path), failing_always=frozenset(range(UNITS)))
    result = run(job, bodies.function, ON_A_CORE, DriverConfig(attempts=1, max_failed=2, in_flight=1))
    assert list(result.failed) == [0, 1]


def test_an_interrupt_ends_the_run_and_gives_the_gpus_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Job(str(tmp_path), interrupting=os.getpid()), WithState, ON_A_GPU, DriverConfig(in_flight=1))
    assert bodies.results(tmp_path) == []
    wait_for_free_gpus()


def test_units_are_listed_once_and_none_needs_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"config": DriverConfig(), "resources": ON_A_CORE, "name": "test-unit"}
    progress = Progress(3, 0, 6, 3600.0, items_name="latents", stream=io.StringIO())
    with pytest.raises(ValueError, match="unit 4 is listed more than once"):
        run_units(Job(""), [3, 4, 4], bodies.function, progress=progress, **settings)
    monkeypatch.setattr("data_pipeline.build.driver.ray_cluster", lambda *_: pytest.fail("Ray was asked for"))
    assert run_units(Job(""), [], bodies.function, progress=progress, **settings) == UnitsRun()


@pytest.mark.parametrize("wrong", [{"cpus": 0.0}, {"gpus": -1.0}, {"memory_bytes": -1}])
def test_resources_that_set_nothing_aside_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="UnitResources"):
        UnitResources(**wrong)
