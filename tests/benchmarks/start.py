"""How long a local build takes to start, against `ray.init` alone.

A build counts as started when it prints its first progress line: then Ray is up and the first unit is handed out. Its
time is that of the whole command from the start of its process: Python, imports, settings, the manifest, the plan, Ray.
`ray.init` is called with what a build calls it with, in a process of its own that has imported Ray already.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 3
_RAY = """
import time
import ray
from data_pipeline.build.ray_cluster import start_local_cluster
began = time.monotonic()
start_local_cluster(2)
print(time.monotonic() - began)
ray.shutdown()
"""


def ray_seconds() -> float:
    """Seconds of `ray.init` as a build calls it."""
    return float(subprocess.run([sys.executable, "-c", _RAY], check=True, capture_output=True, text=True).stdout)


def start_seconds(folder: Path) -> float:
    """Seconds from the start of a build's process to its first progress line. The folder must be empty."""
    (folder / "m.csv").write_text("video,caption\nnone.mp4,\n")  # a row that is refused without a look at its video
    command = [sys.executable, "launch/build_shards.py", "--source", str(folder / "m.csv"), "--output"]
    began = time.monotonic()
    command += [str(folder / "out"), "run.cpus=2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        line = build.stderr.readline()
        seconds = time.monotonic() - began
        assert line.startswith("units 0/1"), line
        build.stderr.read()
    return seconds


def run(rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians of the seconds, in turns."""
    ours, rays = [], []
    for _ in range(rounds):
        rays.append(ray_seconds())
        with tempfile.TemporaryDirectory() as name:
            ours.append(start_seconds(Path(name)))
    value, limit = statistics.median(ours), statistics.median(rays)
    return {
        "name": "a local build starts",
        "unit": "s",
        "value": value,
        "limit": limit,
        "limit_is": "ray.init alone",
        "ratio": value / limit,
        "target": 2.0,
        "seconds": {"build": ours, "ray.init": rays},
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
