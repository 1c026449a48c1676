"""Builds to disturb: small real videos, `launch/build_shards.py` as a process, and the fingerprint of a dataset."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from operator import itemgetter
from pathlib import Path

import av
import psutil

from data_pipeline.build.builder import TASK_NAME, finish_build, plan_build
from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.worker import Worker
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.open import open_store
from tests.data_pipeline.dataset.tiny_dataset import CLIPS, real_frames
from trainer.config.loader import load_config

ROOT = Path(__file__).parents[2]
SETTINGS = ("unit_rows=1", "split.val=0.25", "near_duplicates=3")
DEADLINE_S = 240.0
"""Longest that anything here is waited for."""
UNIT_PROCESS = f"ray::{TASK_NAME}"
"""How a Ray worker names itself while it builds a unit."""


def write_videos(folder: Path, count: int) -> Path:
    """A manifest beside `count` sources of 3 s of real frames; among each eight one is broken, one too short, and one
    has no caption."""
    folder.mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "caption"])
        for number in range(count):
            clip = real_clip(CLIPS[number % len(CLIPS)], number * 5 % 40, 12 if number % 8 == 2 else 36)
            (folder / f"v{number:03d}.mp4").write_bytes(clip[: len(clip) // 3] if number % 8 == 5 else clip)
            caption = "" if number % 8 == 7 else f"Something that moves, number {number}."
            table.writerow([f"v{number:03d}.mp4", caption])
    return folder / "manifest.csv"


def real_clip(name: str, begin: int, count: int) -> bytes:
    """An mp4 of `count` real frames, 320x240 at 12 a second, from frame `begin` on and around the end."""
    frames = real_frames(name, 320, 240)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "18", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(frames[(begin + number) % len(frames)], format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def build_command(source: Path | str, output: Path | str, *words: str) -> list[str]:
    """The command a user types; `words` are further arguments and `key=value` settings."""
    command = [sys.executable, "launch/build_shards.py", "--source", str(source), "--output", str(output)]
    return [*command, *SETTINGS, "run.progress_s=0.2", *words]


def build_here(source: Path, output: Path) -> None:
    """Make the dataset of that command in this process, one unit after the other, without Ray."""
    config = load_config(ShardsConfig, [], [f"source={source}", f"output={output}", *SETTINGS])
    store = open_store(config.output)
    job, missing = plan_build(config, ENCODER_VERSION, store)
    worker = Worker(job, partial(cut_clips, config=config.clip))
    for unit in missing:
        worker.run(unit)
    finish_build(job, UnitsRun(done=len(missing)), store)


class Build:
    """A running `launch/build_shards.py`, leader of its own process group.

    Args:
        command: as `build_command` gives it.
        log: file for all it prints.
        environment: variables to add.
        unit_process: how a worker names itself while it does a unit.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        unit_process: str = UNIT_PROCESS,
    ) -> None:
        self.log, self._unit_process = log, unit_process
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
                start_new_session=True,
            )

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(timeout=DEADLINE_S)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Poll a condition while the build runs. Fails the test when the build ends before it."""
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert self.process.poll() is None, f"the build ended too early to be disturbed:\n{self.text()}"
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def unit_processes(self) -> list[psutil.Process]:
        """Ray's workers that are building a unit right now, of a cluster that the build started itself."""
        found = []
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if " ".join(process.cmdline()).startswith(self._unit_process):
                        found.append(process)
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return []
        return sorted(found, key=lambda process: process.pid)

    def kill_a_unit_process(self, choose: Callable[[list[psutil.Process]], psutil.Process] = itemgetter(0)) -> None:
        """SIGKILL to one of Ray's workers while it builds a unit, as soon as there is one."""
        working: list[psutil.Process] = []

        def found() -> bool:
            working[:] = self.unit_processes()
            return bool(working)

        self.wait_until(found)
        choose(working).send_signal(signal.SIGKILL)

    def kill(self) -> list[psutil.Process]:
        """SIGKILL to the driver's process group; returns the processes below it that lived at that moment."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=DEADLINE_S)
        return below

    def text(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")[-6000:]


@contextmanager
def started(
    command: list[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    unit_process: str = UNIT_PROCESS,
) -> Iterator[Build]:
    """A build that does not outlive the block. The arguments are those of `Build`."""
    build = Build(command, log, environment, unit_process)
    try:
        yield build
    finally:
        if build.process.poll() is None:
            gone(build.kill())


def gone(processes: list[psutil.Process], timeout_s: float = DEADLINE_S) -> None:
    """Wait until the processes have ended. Fails the test when some live on."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"still running: {alive}"


def build(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a build to its end, which must be a good one."""
    with started(command, log, environment) as running:
        assert running.wait() == 0, running.text()


def committed(output: Path | str) -> int:
    """How many units are committed."""
    return len(committed_units(open_store(output)))


def fingerprint(output: Path | str) -> dict[str, str]:
    """SHA-256 of every object of a dataset, whatever its name."""
    store = open_store(output)
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.keys()}


def assert_same_and_proven(
    output: Path | str, expected: dict[str, str], environment: Mapping[str, str] | None = None
) -> None:
    """The dataset equals the undisturbed one byte for byte, and `launch/verify_shards.py` proves it."""
    found = fingerprint(output)
    different = [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]
    assert not different, f"not as in the undisturbed build (absent, new or changed): {different}"
    check = subprocess.run(
        [sys.executable, "launch/verify_shards.py", "--shards", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=os.environ | dict(environment or {}),
    )
    assert check.returncode == 0, check.stdout + check.stderr
    if "://" not in str(output):
        leftovers = [path for path in Path(output).rglob(".tmp-*")]
        assert leftovers == []
