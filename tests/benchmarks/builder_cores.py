"""(d) Shard builder on both cores: the real builder, Ray and commits included, with one worker and with two.

Every unit holds the same videos, so units are equal work, and the rate counts from the moment when every worker has
its first unit behind it: starting Ray and the decoders' processes takes seconds and is not what two cores share. What
the machine itself can give (shared caches, memory, clock) shows in two ffmpeg at once over one, in the same run.
"""

import csv
import subprocess
import tempfile
import time
from itertools import repeat
from pathlib import Path
from typing import Any

from data_pipeline.build.builder import build
from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.cut.config import ClipConfig
from tests.benchmarks.builder import ffmpeg_command, sample_videos

UNITS_PER_CORE = 8
FFMPEG_ROUNDS = 4


def run() -> dict[str, Any]:
    """One line of `make bench`."""
    videos = sample_videos()
    with tempfile.TemporaryDirectory(prefix="vidtwin-bench-") as folder:
        one, two = (_units_per_s(videos, Path(folder) / str(cores), cores) for cores in (1, 2))
    machine = _two_ffmpeg_over_one(videos)
    return {
        "name": "(d) builder, two workers",
        "unit": "units/s",
        "value": two,
        "limit": one,
        "limit_is": f"one worker; two ffmpeg at once do {machine:.2f} times what one does",
        "ratio": two / one,
        "target": 1.8,
        "ffmpeg_ratio": machine,
    }


def _units_per_s(videos: list[Path], folder: Path, cores: int) -> float:
    """Rate of a whole build on so many cores, by the times at which its commit records were written."""
    folder.mkdir()
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "video", "caption"])
        units = cores * (UNITS_PER_CORE + 1)
        table.writerows((f"{unit}-{video.stem}", video, "A video.") for unit in range(units) for video in videos)
    config = ShardsConfig(
        source=str(manifest),
        output=str(folder / "out"),
        unit_rows=len(videos),
        clip=ClipConfig(min_short_side=128),
        run=RunConfig(cpus=cores, progress_s=3600.0),
    )
    result = build(config)
    if result.dataset is None or result.run.done != units:
        raise RuntimeError(f"{result.run.done} of {units} units were built: {result.run.failed}")
    ends = sorted(path.stat().st_mtime_ns / 1e9 for path in (folder / "out" / "units").glob("*.json"))
    return (len(ends) - cores) / (ends[-1] - ends[cores - 1])


def _two_ffmpeg_over_one(videos: list[Path]) -> float:
    """Throughput of two ffmpeg side by side over that of one."""
    seconds = {1: 0.0, 2: 0.0}
    for _ in repeat(None, FFMPEG_ROUNDS):
        for processes in seconds:
            began = time.monotonic()
            for video in videos:
                running = [subprocess.Popen(ffmpeg_command(video, ClipConfig())) for _ in range(processes)]
                if any([process.wait() for process in running]):
                    raise RuntimeError(f"ffmpeg failed on {video}")
            seconds[processes] += time.monotonic() - began
    return 2 * seconds[1] / seconds[2]
