"""Trainings to disturb: two ranks and a launcher, held at a moment by hold/sitecustomize.py, killed there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.training import losses
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.tools.model_files import weight_bytes
from tests.tools.ports import free_port
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml

ROOT = Path(__file__).parents[2]
HOLD = Path(__file__).parent / "hold"
STEPS = 20
DEADLINE_S = 240.0

# The calls before which a run is held, and the numbers to choose the call from.
MOMENTS: dict[str, list[tuple[str, range]]] = {
    "in a step": [
        ("trainer.engine.engine:Engine.backward", range(3, 9)),  # of either network
        ("trainer.engine.engine:Engine.step", range(3, 9)),
    ],
    "in a save": [
        ("trainer.autoencoder:Autoencoder.save", range(1, 3)),  # an empty directory
        ("trainer.engine.ema:Ema.save", range(1, 3)),  # after both engines
        # all is written, but not yet complete
        ("trainer.checkpoint.background_save:copy_files", range(1, 3)),
        ("trainer.checkpoint.writer:write_marker", range(1, 3)),
        ("trainer.checkpoint.writer:Writer.prune", range(1, 3)),  # complete, the old ones still there
    ],
    "in an upload": [
        ("data_pipeline.store.local:LocalStore.write_file", range(2, 14)),  # of the first or second upload
        ("data_pipeline.store.local:LocalStore.write", range(1, 3)),  # the marker
        ("trainer.checkpoint.upload:Uploader._prune", range(1, 3)),
    ],
}
# Those that a run meets once; to resume, it needs a checkpoint.
ENDS: dict[str, list[tuple[str, range]]] = {
    "in the start": [
        ("trainer.config.loader:load_config", range(1, 2)),  # before the ranks have joined
        ("trainer.distributed:start", range(1, 2)),
        ("trainer.run:prepare", range(1, 2)),
        ("trainer.checkpoint.resume:Candidates.newest", range(1, 2)),  # digests are checked
    ],
    "while resuming": [
        ("trainer.checkpoint.checkpoints:Checkpoints.load", range(1, 2)),
        ("trainer.autoencoder:Autoencoder.load", range(1, 2)),
        ("trainer.engine.ema:Ema.load", range(1, 2)),  # after both engines
    ],
    "in the export": [
        ("trainer.autoencoder:Autoencoder.export", range(1, 2)),
        ("trainer.checkpoint.average:Averaged.state", range(1, 3)),  # the weights, their average
        ("trainer.autoencoder_networks:write_model", range(1, 3)),
    ],
}
# The first save of a start, from its beginning to its end, in ten calls.
POINTS_OF_A_SAVE: list[tuple[str, int]] = [
    ("trainer.checkpoint.writer:Writer.write", 1),  # nothing of it exists
    ("trainer.checkpoint.staging:Staging.prepare", 1),  # an empty directory on the disk
    ("trainer.autoencoder:Autoencoder.save", 1),  # an empty folder in memory
    ("trainer.engine.ema:Ema.save", 1),  # both engines are in memory
    ("trainer.checkpoint.background_save:copy_files", 1),  # all is in memory
    ("trainer.checkpoint.background_save:copy_and_digest", 1),  # the same, in the thread
    ("trainer.checkpoint.background_save:copy_and_digest", 3),  # two files are on the disk
    ("trainer.checkpoint.writer:write_marker", 1),  # all is on the disk, of every rank
    ("trainer.checkpoint.writer:Writer.prune", 1),  # complete, the old ones still there
    ("trainer.checkpoint.staging:Staging.release", 1),  # the old ones are gone
]
VICTIMS = ("rank 0", "rank 1", "launcher", "everything")


def write_settings(folder: Path) -> Path:
    """A run with everything that could go on wrongly: both networks, noise, batch statistics, a moving average."""
    data = write_dataset(folder / "data", split_into_shards(make_clips(20, frames=(9, 12)), [8]))
    words = ["gan.start=2", "data.workers=0", "ema.decay=0.5", "checkpoint.every=3", "checkpoint.keep=2"]
    watching = ["telemetry.log_every=1", "telemetry.samples_every=0", "telemetry.tensorboard=false"]
    config = tiny_config("unused", f"data.shards={data}", f"steps={STEPS}", *words, *watching)
    config.output = "???"
    file = folder / "settings.yaml"
    file.write_text(to_yaml(config))
    return file


@dataclass(frozen=True)
class Hold:
    """Where to hold: a function, the number of its call in each process, and a new folder to say so in."""

    function: str
    call: int
    folder: Path

    @staticmethod
    def choose(moment: str, choice: random.Random, folder: Path) -> Hold:
        """One of the moment's calls."""
        function, calls = choice.choice((MOMENTS | ENDS)[moment])
        folder.mkdir()
        return Hold(function, choice.choice(calls), folder)

    def environment(self) -> dict[str, str]:
        return {
            "HOLD_AT": self.function,
            "HOLD_CALL": str(self.call),
            "HOLD_IN": str(self.folder),
            "PYTHONPATH": str(HOLD),
        }

    def reached(self) -> bool:
        """Whether a rank is there."""
        return any(self.folder.iterdir())

    def release(self) -> None:
        """Let go on who lives."""
        (self.folder / "go").touch()


def deepspeed(port: int) -> list[str]:
    """The usual launcher: a command, a process that starts the ranks, the ranks."""
    return [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(port)]


def node(port: int) -> list[str]:
    """The launcher of one node, which starts in half the time."""
    words = ["--nodes", "1", "--node-rank", "0", "--ranks", "2", "--master", "127.0.0.1", "--port", str(port), "--"]
    return [sys.executable, "launch/cluster/node.py", *words]


@dataclass(frozen=True)
class Command:
    """What is given again and again: a launcher, a settings file, settings, and variables."""

    launcher: Callable[[int], list[str]]
    settings: Path
    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Training:
    """Two ranks and their launcher, in a session of their own."""

    def __init__(self, command: Command, output: Path, hold: Hold | None) -> None:
        self.log = output.parent / "log"
        words = ["launch/train.py", "--config", str(command.settings), f"output={output}", *command.words]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | dict(command.environment)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command.launcher(free_port()), *words],
                cwd=ROOT,
                env=environment | (hold.environment() if hold else {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")

    def members(self) -> dict[int, str]:
        """Living processes of the session: number -> its rank, empty for what is none."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
                if fields and int(fields[3]) == self.process.pid and fields[0] != "Z":
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    found[int(entry.name)] = "".join(os.fsdecode(v[5:]) for v in variables if v.startswith(b"RANK="))
            except OSError:  # it has just ended
                continue
        return found

    def victims(self, whom: str) -> list[int]:
        """Processes to kill; all that are not ranks are the launcher's."""
        wanted = {"rank 0": ["0"], "rank 1": ["1"], "launcher": [""], "everything": ["0", "1", ""]}[whom]
        found = [number for number, rank in self.members().items() if rank in wanted]
        assert found, whom
        return found

    def kill(self, whom: str) -> None:
        """SIGKILL, all at one moment."""
        victims = self.victims(whom)
        for name in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none acts on another's death
            for number in victims:
                with suppress(ProcessLookupError):
                    os.kill(number, name)

    def wait_until(self, reached: Callable[[], bool], what: str, alive: bool = False) -> None:
        """Poll; with `alive` the run must not end before."""
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            ended = alive and self.process.poll() is not None
            assert not ended, f"the run ended before {what}:\n{self.text[-4000:]}"
            assert time.monotonic() < deadline, f"waited too long for {what}:\n{self.text[-4000:]}"
            time.sleep(0.02)

    def end(self) -> None:
        """Leave nothing behind."""
        while members := self.members():
            for number in members:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.02)
        self.process.wait(DEADLINE_S)


def finish(command: Command, output: Path) -> str:
    """Run to the end, which must be a good one; what was printed."""
    training = Training(command, output, None)
    try:
        training.wait_until(lambda: training.process.poll() is not None, "the end")
        assert training.process.returncode == 0, training.text[-4000:]
        return training.text
    finally:
        training.end()


def disturb(command: Command, output: Path, whom: str, hold: Hold) -> None:
    """Start, wait for the moment, kill, and see everything of the run gone."""
    training = Training(command, output, hold)
    try:
        training.wait_until(hold.reached, str(hold), alive=True)
        training.kill(whom)
        hold.release()
        training.wait_until(lambda: not training.members(), f"the end of all after {whom} was killed at {hold}")
    finally:
        training.end()


def result(output: Path) -> dict[str, Any]:
    """What must not depend on disturbances: every logged number but clocks, and the exported weights."""
    return {"losses": losses(output)} | {name: weight_bytes(output / name) for name in ("model", "model_ema")}
