"""SIGKILL to the driver, a worker or a node, and two drivers on one output: the same command again, the same bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.faults import builds
from tests.faults.conftest import Undisturbed


@pytest.mark.slow
def test_a_worker_and_then_the_driver_are_killed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = builds.build_command(undisturbed.source, output, "run.cpus=2")
    with builds.started(command, tmp_path / "log") as build:
        build.wait_until(lambda: builds.committed(output) >= 2)
        build.kill_a_unit_process()
        before = builds.committed(output)
        build.wait_until(lambda: builds.committed(output) >= before + 3)  # the run goes on without that worker
        builds.gone(build.kill())
    assert builds.committed(output) < 16, "killed too late to prove anything"
    builds.build(command, tmp_path / "log")
    assert "already committed" in (tmp_path / "log").read_text()
    builds.assert_same_and_proven(output, undisturbed.fingerprint)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_driver_is_killed_again_and_again(seed: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Killed at moments a seed chooses, in planning as well as at work, until too little is left to kill."""
    output, choice = tmp_path / "output", random.Random(seed)
    command = builds.build_command(undisturbed.source, output, "run.cpus=2")
    for _ in range(4):
        target = builds.committed(output) + choice.randrange(0, 5)
        if target >= 14:
            break
        pause = choice.uniform(0.0, 0.5)
        with builds.started(command, tmp_path / "log") as build:
            build.wait_until(lambda target=target: output.exists() and builds.committed(output) >= target)  # type: ignore[misc]
            time.sleep(pause)
            builds.gone(build.kill())
    builds.build(command, tmp_path / "log")
    builds.assert_same_and_proven(output, undisturbed.fingerprint)


@pytest.mark.slow
def test_workers_are_killed_all_the_time(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Six workers killed in the middle of a unit: one run gets through, without a second command."""
    output, choice = tmp_path / "output", random.Random(4)
    with builds.started(builds.build_command(undisturbed.source, output, "run.cpus=2"), tmp_path / "log") as build:
        for _ in range(6):
            build.kill_a_unit_process(choice.choice)
            time.sleep(choice.uniform(0.1, 0.4))
        assert build.wait() == 0, build.text()
    builds.assert_same_and_proven(output, undisturbed.fingerprint)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Ray head with one core, which notices a dead node after seconds."""
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "4")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_is_killed(cluster: Cluster, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """One run gets through on the node that is left, and on the one that comes later."""
    output = tmp_path / "output"
    second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    command = builds.build_command(undisturbed.source, output, "--address", cluster.address)
    with builds.started(command, tmp_path / "log") as build:
        build.wait_until(lambda: builds.committed(output) >= 4)
        cluster.remove_node(second, allow_graceful=False)
        assert builds.committed(output) < 16, "killed too late to prove anything"
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        assert build.wait() == 0, build.text()
    builds.assert_same_and_proven(output, undisturbed.fingerprint)


@pytest.mark.slow
def test_two_drivers_on_one_output(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """By mistake, at the same moment. Both may end well or say why not; nothing is lost and nothing is there twice."""
    output = tmp_path / "output"
    command = builds.build_command(undisturbed.source, output, "run.cpus=1")
    with (
        builds.started(command, tmp_path / "log-1") as first,
        builds.started(command, tmp_path / "log-2") as second,
    ):
        statuses = [first.wait(), second.wait()]
        assert statuses == [0, 0], f"{statuses}\n{first.text()}\n{second.text()}"
    builds.assert_same_and_proven(output, undisturbed.fingerprint)
