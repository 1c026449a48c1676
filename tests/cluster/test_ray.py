"""Building shards with Ray: `ray job submit` to a running cluster, `ray up` and `ray submit` by ssh, and autoscaling.

All clusters live on a host of its own (hosts.py): `ray up` begins with `ray stop`, which ends every Ray it can see.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.host import REPOSITORY, Host
from tests.cluster.hosts import MachineRoom, missing_tools
from tests.data_pipeline.dataset.tiny_dataset import real_video

pytestmark = pytest.mark.root

LOCAL = "launch/cluster/ray_local.yaml"
DASHBOARD = "http://127.0.0.1:8265"
BUSY_S = 240  # starting Ray takes 10 s on a free machine


def launcher_files() -> set[Path]:
    """What `ray up` and `ray submit` leave in /tmp, which is this machine's: ssh sockets and configuration caches."""
    return {path for pattern in ("ray_ssh_*", "ray-config-*") for path in Path("/tmp").glob(pattern)}


@pytest.fixture
def room() -> Iterator[MachineRoom]:
    """One host whose login has this repository at ~/vidtwin, as ray_local.yaml wants it."""
    if reason := missing_tools("rsync", "curl"):
        pytest.skip(reason)
    before = launcher_files()
    with MachineRoom(["node-0"], environment={"RAY_USAGE_STATS_ENABLED": "0"}) as room:
        environment = room["node-0"].environment
        environment["RAY_TMPDIR"] = str(room.folder / "ray")
        (room.home / "vidtwin").symlink_to(REPOSITORY)
        # the login that a cluster's machines have; HOME is the room's, so no file of the real home takes part
        (room.home / ".bashrc").write_text("")
        (room.home / ".profile").write_text(f"export RAY_TMPDIR={room.folder}/ray\n")
        yield room
    for left in launcher_files() - before:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def source(room: MachineRoom) -> Path:
    """A manifest of two real videos."""
    manifest = room.folder / "videos.csv"
    rows = [f"{real_video(name)},a real video\n" for name in ("carphone_pristine.mp4", "bikes.mp4")]
    manifest.write_text("video,caption\n" + "".join(rows))
    return manifest


def build_words(room: MachineRoom, output: Path) -> list[str]:
    """What launch/build_shards.py is told."""
    small = ["clip.min_short_side=64", "clip.short_side=64", "unit_rows=1"]
    return ["--source", str(source(room)), "--output", str(output), *small]


def assert_proven(host: Host, output: Path) -> None:
    """The dataset is complete, by launch/verify_shards.py, and no row got lost."""
    host.run(["python", "launch/verify_shards.py", "--shards", output], timeout=BUSY_S)
    rows = json.loads((output / "dataset.json").read_text())["rows"]
    assert rows["input"] == 2
    assert rows["committed"] + sum(rows["rejected"].values()) + sum(rows["quarantined"].values()) == 2
    assert rows["committed"] > 0


def test_ray_job_submit_builds_shards(room: MachineRoom) -> None:
    host, output = room["node-0"], room.folder / "shards"
    start = ["ray", "start", "--head", "--dashboard-host=127.0.0.1", "--num-cpus=2", "--object-store-memory=100000000"]
    host.popen([*start, "--block", "--disable-usage-stats"], log="ray.log").wait_for("--block", BUSY_S)
    command = ["python", "launch/build_shards.py", *build_words(room, output), "--address", "auto"]
    job = host.popen(["ray", "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--", *command])
    text = job.succeed(BUSY_S)
    assert "succeeded" in text
    assert_proven(host, output)
    jobs = json.loads(host.run(["curl", "-sf", f"{DASHBOARD}/api/jobs/"]))
    assert [entry["status"] for entry in jobs if entry["type"] == "SUBMISSION"] == ["SUCCEEDED"]


@pytest.mark.slow
def test_ray_up_and_ray_submit_through_ssh(room: MachineRoom) -> None:
    host, output = room["node-0"], room.folder / "shards"
    host.popen(["ray", "up", "-y", "--no-config-cache", LOCAL], log="up.log").succeed(BUSY_S)
    words = [*build_words(room, output), "--address", "auto"]
    host.popen(["ray", "submit", LOCAL, "launch/build_shards.py", "--", *words], log="submit.log").succeed(BUSY_S)
    assert_proven(host, output)
    # the dashboard answers on loopback only
    host.run(["curl", "-sf", f"{DASHBOARD}/api/version"])
    assert "curl: (7)" in host.run(["curl", "-sS", f"http://{host.address}:8265/api/version"], check=False)
    host.popen(["ray", "down", "-y", LOCAL], log="down.log").succeed(BUSY_S)
    assert [line for line in room.processes("node-0") if "raylet" in line or "gcs_server" in line] == []


# The autoscaler is the real one, its new machines are processes of this host.
AUTOSCALED = """
cluster_name: fake
max_workers: 4
idle_timeout_minutes: 10
upscaling_speed: 1.0
provider:
  type: external
  module: tests.cluster.fake_nodes.FakeNodes
  use_node_id_as_ip: true
  disable_node_updaters: true
  disable_launch_config_check: true
head_node_type: ray.head.default
available_node_types:
  ray.head.default: {resources: {CPU: 0}, node_config: {}, max_workers: 0}
  lean: {resources: {CPU: 4, memory: 500000000, lean: 1}, node_config: {}, max_workers: 2}
  roomy: {resources: {CPU: 1, memory: 2000000000, roomy: 1}, node_config: {}, max_workers: 2}
auth: {}
docker: {}
file_mounts: {}
file_mounts_sync_continuously: false
cluster_synced_files: []
rsync_exclude: []
rsync_filter: []
initialization_commands: []
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
"""
NODES = "import json, ray; ray.init(address='auto'); print(json.dumps([node['Resources'] for node in ray.nodes()]))"


@pytest.mark.slow
def test_the_autoscaler_starts_the_nodes_that_units_ask_for(room: MachineRoom) -> None:
    """The head has no core, so without new nodes nothing is built; only one kind of node has the memory asked for."""
    host, output = room["node-0"], room.folder / "shards"
    config = room.folder / "autoscaled.yaml"
    config.write_text(AUTOSCALED)
    start = ["ray", "start", "--head", "--num-cpus=0", "--dashboard-host=127.0.0.1", "--object-store-memory=80000000"]
    fake = ["env", "RAY_FAKE_CLUSTER=1", "AUTOSCALER_UPDATE_INTERVAL_S=1", f"PYTHONPATH={REPOSITORY}"]
    host.run([*fake, *start, "--disable-usage-stats", f"--autoscaling-config={config}"], timeout=BUSY_S)
    words = [*build_words(room, output), "--address", "auto", "run.unit_memory_bytes=1500000000"]
    host.popen(["python", "launch/build_shards.py", *words]).succeed(BUSY_S)
    assert_proven(host, output)
    nodes = json.loads(host.run(["python", "-c", NODES], timeout=BUSY_S).splitlines()[-1])
    assert [node for node in nodes if "roomy" in node]
    assert [node for node in nodes if "lean" in node] == []
