"""The driver's loop with a Ray made by hand: what is tried how often, how much Ray has at once, when a run gives up."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from data_pipeline.build import driver, ray_workers
from data_pipeline.build.builder import finish_build, plan_build
from data_pipeline.build.config import DriverConfig, ShardsConfig, UnitResources
from data_pipeline.build.dataset_job import DatasetResult
from data_pipeline.build.driver import UnitsRun, run_units
from data_pipeline.build.progress import Progress
from data_pipeline.build.unit import UnitReport
from data_pipeline.build.unit_body import GivenBack
from data_pipeline.build.worker import BuildJob
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub

Outcome = Callable[[int, int], Exception | None]


class Ray:
    """Does a unit when its result is asked for. `outcome(unit, attempt)` says what becomes of it."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.attempts: Counter[int] = Counter()
        self.most = self.running = 0

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        assert options["max_retries"] == 0, "retries are counted by the builder"
        self.options = options

        def start(job: Any, unit: int) -> int:
            self.running += 1
            self.most = max(self.most, self.running)
            return unit

        return lambda body: SimpleNamespace(options=lambda name: SimpleNamespace(remote=start))

    def put(self, job: str) -> str:
        return job

    def wait(self, references: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return references[:1], references[1:]

    def get(self, unit: int) -> UnitReport:
        self.running -= 1
        self.attempts[unit] += 1
        error = self.outcome(unit, self.attempts[unit])
        if error is not None:
            raise error
        return UnitReport(unit, rows=1, items=10 + unit, bytes=5, fates=Counter(committed=1))

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeManagerHostname": name, "Alive": name != "dead", "Resources": has}
            for name, has in (("one", {"CPU": 1.0, "memory": 4e9}), ("two", {"CPU": 1.0}), ("head", {}), ("dead", {}))
        ]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0, "memory": 5e9}


def run(
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    units: int = 6,
    resources: UnitResources | None = None,
    **settings: Any,
) -> tuple[Ray, UnitsRun]:
    ray = Ray(outcome)
    monkeypatch.setattr(ray_workers, "ray", ray)
    monkeypatch.setattr(driver, "ray_cluster", lambda config, resources: nullcontext())
    monkeypatch.setattr(driver, "_Counters", lambda items_name: SimpleNamespace(add=lambda report: None))
    progress = Progress(units, 0, units, 3600.0, items_name="clips", stream=io.StringIO())
    result = run_units(
        "job",
        range(units),
        stub.run_unit,
        config=DriverConfig(**settings),
        resources=resources or UnitResources(),
        progress=progress,
        name="build-unit",
    )
    return ray, result


def failed() -> RayTaskError:
    return RayTaskError("build-unit", "", OSError("no route to the store\nand more"))


def test_every_unit_is_done_once_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, result = run(monkeypatch, lambda unit, attempt: None)
    assert ray.attempts == Counter(range(6))
    assert (result.done, result.items, result.failed) == (6, sum(range(10, 16)), {})


@pytest.mark.parametrize(("good", "left"), [(3, False), (4, True)])
def test_a_unit_that_fails_is_tried_so_often(good: int, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ray, result = run(monkeypatch, lambda unit, n: failed() if unit == 2 and n < good else None, attempts=3)
    assert ray.attempts[2] == 3
    assert (result.done, list(result.failed)) == ((5, [2]) if left else (6, []))
    if left:
        assert result.failed[2] == "OSError: no route to the store"


@pytest.mark.parametrize(("good", "left"), [(10, False), (11, True)])
def test_a_unit_that_goes_down_with_its_node_has_ten_tries_of_its_own(
    good: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails once as well, which is counted apart."""

    def outcome(unit: int, attempt: int) -> Exception | None:
        if unit != 2:
            return None
        if attempt == 1:
            return failed()
        return WorkerCrashedError() if attempt <= good else None

    ray, result = run(monkeypatch, outcome, attempts=2)
    assert ray.attempts[2] == 11
    assert list(result.failed) == ([2] if left else [])


def test_a_run_stops_when_so_many_units_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, result = run(monkeypatch, lambda unit, n: failed(), units=20, attempts=1, max_failed=3, in_flight=1)
    assert list(result.failed) == [0, 1, 2]
    assert (ray.attempts, result.done) == (Counter(range(3)), 0)


def in_trouble(host: str) -> RayTaskError:
    return RayTaskError("build-unit", "", GivenBack("no S3 credentials", host))


def test_a_machine_in_trouble_costs_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first machine gives back what it gets, and the second one does it: no try of a unit is spent."""
    _, result = run(
        monkeypatch, lambda unit, n: in_trouble("one") if n < 5 and unit % 2 else None, units=20, attempts=1
    )
    assert (result.done, result.failed, result.stopped) == (20, {}, "")


def test_a_run_stops_when_all_machines_give_back_three_units(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = iter(["one", "one", "one", "one", "two", "two", "two"])
    ray, result = run(monkeypatch, lambda unit, n: in_trouble(next(machines)), units=20, in_flight=1, max_failed=1)
    assert (result.done, result.failed, result.stopped) == (0, {}, "no S3 credentials")
    assert ray.attempts == Counter(range(7)), "each of seven units once"


def test_machines_that_no_unit_fits_on_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = UnitResources(memory_bytes=10**9)
    ray, result = run(monkeypatch, lambda unit, n: in_trouble("one"), units=20, resources=resources, in_flight=1)
    assert ray.attempts.total() == 3
    assert result.stopped


def test_the_last_unit_is_given_back_three_times_by_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, result = run(monkeypatch, lambda unit, n: in_trouble("one") if unit == 2 else None, in_flight=1)
    assert (result.done, result.stopped) == (5, "no S3 credentials"), "it does not keep the others from their end"
    assert ray.attempts[2] == 6


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"in_flight": 5}, 5),
        ({}, 8),
        ({"resources": UnitResources(cpus=0.25)}, 24),
        ({"resources": UnitResources(cpus=3.0)}, 8),
        ({"resources": UnitResources(cpus=0.25, memory_bytes=10**9)}, 10),
    ],
)
def test_ray_has_two_units_in_its_hands_for_each_that_has_room_and_eight_at_least(
    settings: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, result = run(monkeypatch, lambda unit, n: None, units=40, **settings)
    assert (ray.most, result.done) == (most, 40)


@pytest.mark.parametrize(
    ("resources", "set_aside"),
    [
        (UnitResources(cpus=0.5), {"num_cpus": 0.5, "num_gpus": None, "memory": None, "max_calls": 0}),
        (
            UnitResources(gpus=0.25, memory_bytes=3 * 10**8),
            {"num_cpus": 1.0, "num_gpus": 0.25, "memory": 3 * 10**8, "max_calls": 1},
        ),
    ],
)
def test_ray_sets_cores_gpus_and_bytes_aside_in_its_own_units(
    resources: UnitResources, set_aside: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's documentation of `ray.remote` has `memory` in bytes. A process that has held a GPU does one unit."""
    monkeypatch.setattr(Ray, "cluster_resources", lambda ray: {"CPU": 3.0, "GPU": 1.0, "memory": 5e9})
    ray, result = run(monkeypatch, lambda unit, n: None, resources=resources)
    assert ray.options == {"max_retries": 0, **set_aside}
    assert result.done == 6


# --- around the loop -------------------------------------------------------------------------------------------------


def built(source: Path, output: Path, body: Any = stub.run_unit, but: int | None = None, **more: Any) -> DatasetResult:
    """A build without Ray; the unit `but` fails."""
    store = LocalStore(output)
    config = ShardsConfig(source=str(source), output=str(output), unit_rows=2)
    job, missing = plan_build(config, stub.ENCODER, store, **more)
    run = UnitsRun()
    for unit in missing:
        if unit == but:
            run.failed[unit] = "OSError: no route to the store"
        else:
            body(job, unit)
            run.done += 1
    return finish_build(job, run, store)


def test_a_dataset_in_work_is_not_described_as_it_was(tmp_path: Path) -> None:
    """A unit of a complete dataset has gone; the run that builds it again dies before it is there."""
    source, store = stub.write_sources(tmp_path / "src", 6), LocalStore(tmp_path / "out")
    before = built(source, store.root).dataset
    store.delete("units/000001.json")

    def dying(job: BuildJob, unit: int) -> UnitReport:
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        built(source, store.root, dying)
    assert not store.exists("dataset.json")
    again = built(source, store.root)
    assert (again.run.done, again.dataset) == (1, before)


@pytest.mark.parametrize("damage", ["shard gone", "shard cut off", "index gone"])
def test_damage_of_a_complete_dataset_is_named_and_mended_as_the_message_says(tmp_path: Path, damage: str) -> None:
    source, store = stub.write_sources(tmp_path / "src", 6), LocalStore(tmp_path / "out")
    built(source, store.root)
    before = stub.contents(store)
    name = "units/000001.arrow" if damage == "index gone" else "shards/000001-000.tar"
    path = store.root / name
    if damage == "shard cut off":
        path.write_bytes(path.read_bytes()[:-512])
        fault = f"{name} has {path.stat().st_size} bytes and not {path.stat().st_size + 512}"
    else:
        path.unlink()
        fault = f"{name} is missing"
    with pytest.raises(ValueError, match="is damaged: ") as refused:
        built(source, store.root)
    assert f"{store.uri()} is damaged: {fault} (unit 1); launch/verify_shards.py" in str(refused.value)
    store.delete("units/000001.json")
    assert built(source, store.root).run.done == 1
    assert stub.contents(store) == before


def test_a_dataset_with_failed_units_is_left_to_the_next_run(tmp_path: Path) -> None:
    source, store = stub.write_sources(tmp_path / "src", 6), LocalStore(tmp_path / "out")
    result = built(source, store.root, but=2)
    assert (result.run.done, list(result.run.failed), result.dataset) == (2, [2], None)
    assert not store.exists("dataset.json")
    result = built(source, store.root)
    assert (result.run.done, result.run.failed, store.exists("dataset.json")) == (1, {}, True)


def test_rows_are_tried_again_when_all_others_have_their_fate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, store = stub.write_sources(tmp_path / "src", 6), LocalStore(tmp_path / "out")
    built(source, store.root)
    store.delete("units/000001.json")
    (source / "v004.mp4").write_text("clip 700")
    first = built(source, store.root, retry_quarantined=True)
    assert (first.run.done, first.plan.units) == (1, 3), "the missing unit comes first"
    assert "resuming: 6 rows in 3 units, 2 already committed" in capsys.readouterr().out
    second = built(source, store.root, retry_quarantined=True)
    assert (second.run.done, second.plan.units, second.plan.rows) == (1, 4, 6)
    assert committed_units(store) == {0, 1, 2, 3}


def test_units_of_another_manifest_are_left_to_a_build_from_it(tmp_path: Path) -> None:
    source, store = stub.write_sources(tmp_path / "src", 4), LocalStore(tmp_path / "out")
    more = stub.write_sources(tmp_path / "more", 6)
    for number in range(6):
        for suffix in (".mp4", ".txt"):
            path = more / f"v{number:03d}{suffix}"
            if path.exists():
                path.rename(more / f"w{number:03d}{suffix}")
    built(source, store.root)
    built(more, store.root, append=True)
    store.delete("units/000001.json")
    with pytest.raises(ValueError, match=r"unit 1 is not committed and belongs to the manifest 'src'"):
        built(more, store.root)
    assert built(source, store.root).run.done == 1
