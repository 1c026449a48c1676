"""How much memory a save may take: by the file system, the node, and the control groups of either version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.checkpoint.staging import free_bytes
from trainer.engine.free_memory import memory_groups

GROUPS = {
    "version 2": (
        "0::/jobs/mine\n",
        {
            "jobs/mine/memory.max": "max",
            "jobs/mine/memory.current": "70",
            "jobs/mine/memory.stat": "anon 60\ninactive_file 10\n",
            "jobs/memory.max": "1000",
            "jobs/memory.current": "400",
            "jobs/memory.stat": "anon 100\ninactive_file 250\n",
        },
        {"jobs": 850},
    ),
    "version 1": (
        "5:cpu,cpuacct:/jobs\n4:memory:/jobs/mine\n",
        {
            "memory/jobs/mine/memory.limit_in_bytes": "500",
            "memory/jobs/mine/memory.usage_in_bytes": "600",
            "memory/jobs/mine/memory.stat": "rss 590\ntotal_inactive_file 10\n",
        },
        {"memory/jobs/mine": 0},
    ),
    "a container that does not see its own path": (
        "0::/../../elsewhere\n",
        {"memory.max": "900", "memory.current": "100", "memory.stat": "inactive_file 0\n"},
        {".": 800},
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_what_control_groups_leave(name: str, tmp_path: Path) -> None:
    own, files, expected = GROUPS[name]
    mount = tmp_path / "mount"
    for path, text in files.items():
        (mount / path).parent.mkdir(parents=True, exist_ok=True)
        (mount / path).write_text(text)
    (tmp_path / "own").write_text(own)
    found = dict(memory_groups(tmp_path / "own", mount))
    assert {Path(folder).resolve(): left for folder, left in found.items()} == {
        (mount / folder).resolve(): left for folder, left in expected.items()
    }


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_small_tmpfs_is_the_limit(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    code = (
        "import subprocess, sys; from pathlib import Path; from trainer.checkpoint.staging import free_bytes\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', sys.argv[1]], check=True)\n"
        "(Path(sys.argv[1]) / 'file').write_bytes(bytes(4096 * 56))\n"
        "print(*free_bytes(Path(sys.argv[1])))"
    )
    # in a mount namespace of its own, so that nothing is left mounted
    command = ["unshare", "--mount", sys.executable, "-c", code, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [str(2**20 - 4096 * 56), str(folder)]


def test_the_nodes_memory_is_a_limit(tmp_path: Path) -> None:
    left, _ = free_bytes(tmp_path)
    with Path("/proc/meminfo").open() as lines:
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < left < total
