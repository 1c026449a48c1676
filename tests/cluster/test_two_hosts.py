"""`deepspeed --hostfile` over pdsh and ssh on two hosts, shards on a real S3 server: train, break, resume.

The hosts are namespaces of this machine (hosts.py). The commands are those of docs/cluster.md.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.cluster.host import wait_until
from tests.cluster.training import (
    COLLECTIVE_TIMEOUT_S,
    STEPS,
    TwoHosts,
    checkpoints,
    logged,
    losses,
    wait_for_checkpoint,
    wait_for_step,
)
from tests.tools.model_files import weight_bytes

pytestmark = pytest.mark.root


@pytest.mark.slow
def test_trains_across_two_hosts_from_shards_on_s3(two_hosts: TwoHosts, undisturbed: Path) -> None:
    room = two_hosts.room
    assert [row["step"] for row in logged(undisturbed)] == list(range(1, STEPS + 1))
    assert (undisturbed / "model" / "model.safetensors").stat().st_size > 0
    text = (room["node-0"].root / "undisturbed.log").read_text()
    assert f"node-0: finished {STEPS} steps" in text
    for name in room.names:  # each host ran one rank, which fetched shards to the host's own disk
        wait_until(lambda name=name: room.processes(name) == [], 60, f"end of all processes of {name}")  # type: ignore[misc]
        assert "exits successfully" in "".join(line for line in text.splitlines() if line.startswith(f"{name}:"))
        if not two_hosts.shards.startswith("s3://"):
            continue
        fetched = [file for file in (room[name].root / "disk" / "cache").rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in fetched) > 10_000, fetched


@pytest.mark.slow
@pytest.mark.parametrize("accident", ["cut link", "killed host"])
def test_same_command_again_ends_as_if_nothing_had_happened(
    two_hosts: TwoHosts, undisturbed: Path, accident: str
) -> None:
    room, run = two_hosts.room, two_hosts.room.folder / accident.replace(" ", "-")
    job = two_hosts.train(run)
    wait_for_checkpoint(run, two_hosts.START_S)
    if accident == "cut link":
        room.cut_link("node-1")
    else:
        room.kill_host("node-1")
    begin = time.monotonic()
    # the timeout itself, then the launcher's and ssh's own delays
    assert job.wait(COLLECTIVE_TIMEOUT_S + 90) != 0
    assert time.monotonic() - begin > COLLECTIVE_TIMEOUT_S / 4, "nobody had time to notice: what ended the job?"
    assert 5 in checkpoints(run)
    assert STEPS not in checkpoints(run)
    if accident == "cut link":
        room.restore_link("node-1")
    else:
        room.boot("node-1")  # with an empty disk
    # a host that was cut off finds out by itself, and its launcher looks once a second
    wait_until(lambda: not any("train.py" in line for name in room.names for line in room.processes(name)), 30, "ends")

    text = two_hosts.train(run).succeed(two_hosts.START_S)

    assert "step-" in text.split("step 6/")[0]  # it said from which checkpoint it goes on
    assert losses(run) == losses(undisturbed)
    assert weight_bytes(run / "model") == weight_bytes(undisturbed / "model")


@pytest.mark.slow
def test_one_signal_to_one_rank_stops_all_with_a_checkpoint(two_hosts: TwoHosts, undisturbed: Path) -> None:
    room, run = two_hosts.room, two_hosts.room.folder / "stopped"
    job = two_hosts.train(run)
    wait_for_step(run, 6, two_hosts.START_S)
    room["node-0"].run(["ssh", "node-1", "pkill -USR1 -f 'train.py --local_rank'"])  # as docs/cluster.md says it
    text = job.succeed(60)
    stopped = re.search(r"stopped by a signal to another rank after step (\d+), which is saved", text)
    assert stopped, text[-4000:]
    assert checkpoints(run)[-1] == int(stopped.group(1))
    two_hosts.train(run).succeed(two_hosts.START_S)
    assert losses(run) == losses(undisturbed)


@pytest.mark.slow
def test_without_a_shared_disk_a_replaced_host_fetches_its_checkpoint(two_hosts: TwoHosts, undisturbed: Path) -> None:
    """Each host has the run on its own disk and uploads what it wrote; one is replaced while the run is stopped."""
    if not two_hosts.shards.startswith("s3://"):
        pytest.skip("no S3 gateway to upload to (Debian: radosgw ceph-mon ceph-osd ceph-common)")
    room, run, words = two_hosts.room, two_hosts.room.disk / "run", ["checkpoint.upload=s3://cluster-test/run"]
    disks = [room[name].root / "disk" / "run" for name in room.names]
    job = two_hosts.train(run, *words)
    wait_for_step(disks[0], 6, two_hosts.START_S)
    room["node-0"].run(["ssh", "node-1", "pkill -USR1 -f 'train.py --local_rank'"])
    text = job.succeed(90)
    stopped = checkpoints(disks[0])[-1]
    assert "node-0: uploaded to s3://cluster-test/run" in text
    apart = [{file.name for file in disk.glob(f"checkpoints/step-{stopped:08d}/**/*.pt")} for disk in disks]
    assert "rng-00001.pt" in apart[1] - apart[0]
    assert "rng-00000.pt" in apart[0] - apart[1]
    room.kill_host("node-1")
    room.boot("node-1")
    assert not disks[1].exists()

    text = two_hosts.train(run, *words).succeed(two_hosts.START_S)

    assert re.search(rf"node-1: fetching \d+ files of step-{stopped:08d} from s3://cluster-test/run", text)
    assert f"going on after step {stopped}" in text
    assert losses(disks[0]) == losses(undisturbed)
    assert weight_bytes(disks[0] / "model") == weight_bytes(undisturbed / "model")


@pytest.mark.slow
def test_a_refused_setting_comes_back_as_status_2(two_hosts: TwoHosts) -> None:
    job = two_hosts.train(two_hosts.room.folder / "refused", "optim.clip=-1")
    assert job.wait(two_hosts.START_S) == 2
    assert "optim.clip=-1" in job.text
