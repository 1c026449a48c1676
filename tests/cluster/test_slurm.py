"""launch/cluster/slurm/train.sbatch on a real SLURM of two hosts: preempted, requeued, broken, cancelled, refused.

munged, slurmctld and slurmd are Debian's and run inside the machine room (hosts.py, slurm.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.host import REPOSITORY, wait_until
from tests.cluster.hosts import MachineRoom, missing_tools
from tests.cluster.slurm import TOOLS, Slurm
from tests.cluster.training import (
    TwoHosts,
    checkpoints,
    losses,
    wait_for_checkpoint,
    wait_for_step,
    write_config,
    write_shards,
)

pytestmark = pytest.mark.root

SCRIPT = "launch/cluster/slurm/train.sbatch"
ONE_RANK_A_NODE = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]


class Cluster:
    """A SLURM cluster that trains."""

    def __init__(self, slurm: Slurm, hosts: TwoHosts) -> None:
        self.slurm = slurm
        self.hosts = hosts
        self.folder = hosts.room.folder
        # jobs leave files where they are submitted: not in this repository
        self.checkout = self.folder / "checkout"
        self.checkout.mkdir()
        (self.checkout / "launch").symlink_to(REPOSITORY / "launch")

    def submit(self, run: Path, *words: str) -> int:
        """Number of a submitted training; its output is in RUN.log."""
        settings = [*self.hosts.settings(run), *words]
        return self.slurm.submit(*ONE_RANK_A_NODE, f"--output={self.log(run)}", SCRIPT, *settings, cwd=self.checkout)

    def log(self, run: Path) -> Path:
        return self.folder / f"{run.name}.log"

    def wait_for_state(self, job: int, state: str) -> None:
        def reached() -> bool:
            now = self.slurm.state(job)["JobState"]
            assert now not in {"FAILED", "NODE_FAIL"} - {state}, self.slurm.state(job)
            return now == state

        wait_until(reached, TwoHosts.START_S, f"job {job} {state}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := missing_tools(*TOOLS):
        pytest.skip(f"{reason}; SLURM is Debian's slurmctld slurmd slurm-client munge")
    with MachineRoom(["node-0", "node-1"], environment={"PYTHON": sys.executable}) as room:
        write_config(room.folder / "tiny.yaml")
        hosts = TwoHosts(room, str(write_shards(room.folder / "shards")))
        slurm = Slurm(room)
        slurm.start()
        yield Cluster(slurm, hosts)


@pytest.mark.slow
def test_a_rank_gets_the_cpus_of_its_task(cluster: Cluster) -> None:
    """Asked of SLURM by what stands in the place of Python in a job of its own."""
    asks, log = cluster.folder / "asks", cluster.folder / "asks.log"
    asks.write_text('#!/bin/sh\nexec scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID"\n')
    asks.chmod(0o755)
    words = [
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        "--cpus-per-task=2",
        f"--export=ALL,PYTHON={asks}",
    ]
    job = cluster.slurm.submit(*words, f"--output={log}", SCRIPT, cwd=cluster.checkout)
    cluster.wait_for_state(job, "COMPLETED")
    assert re.findall(r"TresPerTask=cpu:(\d+)", log.read_text()) == ["2", "2"], log.read_text()  # from each rank


@pytest.mark.slow
def test_a_preempted_job_saves_waits_and_ends_as_if_undisturbed(cluster: Cluster, undisturbed: Path) -> None:
    run = cluster.folder / "preempted"
    job = cluster.submit(run)
    wait_for_step(run, 6, TwoHosts.START_S)
    # a partition of higher priority takes both nodes
    cluster.slurm.head.run(["srun", "--partition=urgent", "--exclusive", "--nodes=2", "hostname"], timeout=90)
    saved = checkpoints(run)
    cluster.wait_for_state(job, "COMPLETED")

    text = cluster.log(run).read_text()
    stopped = re.search(r"stopped by SIGUSR1 after step (\d+), which is saved", text)
    assert stopped, text[-4000:]
    assert int(stopped.group(1)) in saved
    assert f"job {job}, start 2: 2 ranks on node-[0-1]" in text
    assert cluster.slurm.state(job)["Restarts"] == "1"
    assert losses(run) == losses(undisturbed)


@pytest.mark.slow
def test_a_dead_rank_ends_the_run_and_the_job_starts_again(cluster: Cluster, undisturbed: Path) -> None:
    run = cluster.folder / "dead-rank"
    job = cluster.submit(run)
    wait_for_checkpoint(run, TwoHosts.START_S)
    cluster.hosts.room["node-1"].run(["pkill", "-KILL", "-f", "launch/train.py"])
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.slurm.state(job)["Restarts"] == "1"
    assert losses(run) == losses(undisturbed)
    assert not list(cluster.checkout.glob("*.failures"))


@pytest.mark.slow
def test_requeued_by_the_administrator_it_saves_first(cluster: Cluster, undisturbed: Path) -> None:
    run = cluster.folder / "requeued"
    job = cluster.submit(run)
    wait_for_step(run, 6, TwoHosts.START_S)
    cluster.slurm.head.run(["scontrol", "requeue", str(job)])
    cluster.wait_for_state(job, "COMPLETED")
    assert "stopped by SIGTERM" in cluster.log(run).read_text()
    assert losses(run) == losses(undisturbed)


@pytest.mark.slow
def test_cancelled_it_saves_and_stays_cancelled(cluster: Cluster) -> None:
    run = cluster.folder / "cancelled"
    job = cluster.submit(run)
    wait_for_step(run, 6, TwoHosts.START_S)
    cluster.slurm.head.run(["scancel", str(job)])
    cluster.wait_for_state(job, "CANCELLED")
    wait_until(lambda: "stopped by SIGTERM" in cluster.log(run).read_text(), 60, "the last checkpoint")
    assert checkpoints(run)[-1] >= 6
    cluster.slurm.wait_until_idle()
    assert cluster.slurm.state(job)["JobState"] == "CANCELLED"


@pytest.mark.slow
def test_a_refused_setting_is_not_tried_again(cluster: Cluster) -> None:
    run = cluster.folder / "refused"
    job = cluster.submit(run, "optim.clip=-1")
    cluster.wait_for_state(job, "FAILED")
    assert cluster.slurm.state(job)["ExitCode"] == "2:0"
    assert cluster.slurm.state(job)["Restarts"] == "0"
    assert "optim.clip=-1" in cluster.log(run).read_text()


@pytest.mark.slow
def test_a_dead_node_puts_the_job_back_until_the_node_returns(cluster: Cluster, undisturbed: Path) -> None:
    room, run = cluster.hosts.room, cluster.folder / "dead-node"
    job = cluster.submit(run)
    wait_for_checkpoint(run, TwoHosts.START_S)
    room.kill_host("node-1")
    cluster.wait_for_state(job, "PENDING")
    room.boot("node-1")
    cluster.slurm.start_node("node-1")
    cluster.wait_for_state(job, "COMPLETED")
    assert losses(run) == losses(undisturbed)
