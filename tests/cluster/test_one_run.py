"""Ranks of nodes that do not fit together, of two launches at one port, missing and restarted: real processes.

The nodes are processes of this machine, as without ssh and scheduler (docs/cluster.md).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from model.vidtwin import VidTwin
from model.weights import save_module
from tests.cluster.host import REPOSITORY, Job, wait_until
from tests.cluster.training import (
    CONFIG,
    checkpoints,
    logged,
    wait_for_checkpoint,
    wait_for_step,
    write_config,
    write_shards,
)
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.tools.ports import free_port
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

TRAIN = str(REPOSITORY / "launch" / "train.py")
PATIENCE_S = 240.0
CHANGED = f"; import runpy; runpy.run_path({TRAIN!r}, run_name='__main__')"
OTHER_TORCH = ["-c", f"import torch; torch.__version__ = torch.torch_version.TorchVersion('2.11.0'){CHANGED}"]
IMPATIENT = ["-c", f"from trainer.join import guest; guest.REPORT_S = 0.2{CHANGED}"]
SETTINGS: dict[str, Any] = {"steps": 16, "collective_timeout": 4, "data": CONFIG["data"] | {"global_batch": 4}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that is not to be changed."""
    return write_shards(tmp_path_factory.mktemp("one_run") / "shards")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A configuration file."""
    return write_config(tmp_path / "tiny.yaml", **SETTINGS)


@contextmanager
def started(words: Sequence[str | Path], log: Path, cwd: Path = REPOSITORY) -> Iterator[Job]:
    """A command of which no process is left afterwards."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, words)), cwd=cwd, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield Job(process, log)
    finally:
        for member in [process.pid, *below(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait(60)


def children(process: int) -> list[int]:
    """The processes that a process has started and that have not ended; none of a process that has ended."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def below(process: int) -> list[int]:
    """All processes that a process and its children have started."""
    return [found for child in children(process) for found in (child, *below(child))]


def node(number: int, nodes: int, ranks: int, port: int, *script: str | Path) -> list[str | Path]:
    """The command of one node."""
    places = [f"--nodes={nodes}", f"--node-rank={number}", f"--ranks={ranks}", "--master=127.0.0.1", f"--port={port}"]
    return [sys.executable, REPOSITORY / "launch" / "cluster" / "node.py", *places, "--", *script]


def kill_rank(job: Job, rank: int) -> None:
    """SIGKILL to one rank of a launcher whose children the ranks are."""
    variable = f"RANK={rank}".encode()
    (process,) = [
        child
        for child in children(job.process.pid)
        if variable in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    ]
    os.kill(process, signal.SIGKILL)


def refusals(job: Job) -> list[str]:
    """The lines in which the command says why it does not train."""
    return [line for line in job.text.splitlines() if line.startswith(("launch/train.py: ", "-c: "))]


def test_a_node_with_an_older_file_and_another_torch_ends_all_ranks(
    settings: Path, shards: Path, tmp_path: Path
) -> None:
    """Two nodes of two ranks. Each says once what differs, with the ranks of each value."""
    optim = {"generator": {"lr": 0.0003, "warmup": 1}, "discriminator": {"warmup": 1}}
    telemetry = CONFIG["telemetry"] | {"log_every": 5}
    old = write_config(tmp_path / "old.yaml", **SETTINGS | {"optim": optim, "telemetry": telemetry})
    words, port = [f"data.shards={shards}", f"output={tmp_path / 'run'}"], free_port()
    with (
        started(node(0, 2, 2, port, TRAIN, "--config", settings, *words), tmp_path / "node0.log") as one,
        started(node(1, 2, 2, port, *OTHER_TORCH, "--config", old, *words), tmp_path / "node1.log") as two,
    ):
        assert (one.wait(PATIENCE_S), two.wait(PATIENCE_S)) == (2, 2), one.text + two.text
        for job in (one, two):
            (line,) = refusals(job)
            assert "the ranks differ in what must be the same on all of them: " in line
            assert "optim.generator.lr is 0.00016 on ranks 0-1, 0.0003 on ranks 2-3; " in line
            assert "telemetry.log_every is 1 on ranks 0-1, 5 on ranks 2-3; " in line
            assert "torch is 2." in line
            assert " on ranks 0-1, 2.11.0 on ranks 2-3" in line
            assert "steps" not in line
    assert not (tmp_path / "run").exists()


def two_folders(tmp_path: Path, settings: Path, *words: str) -> tuple[Job, Job]:
    """Two nodes of one rank that were given the same words, each in a folder of its own, and ended with status 2.

    They leave the output, which was there before, as empty as it was.
    """
    port, output = free_port(), f"output={tmp_path / 'run'}"
    (tmp_path / "run").mkdir(exist_ok=True)
    commands = [node(number, 2, 1, port, TRAIN, "--config", settings, output, *words) for number in (0, 1)]
    with (
        started(commands[0], tmp_path / "node0.log", tmp_path / "node0") as one,
        started(commands[1], tmp_path / "node1.log", tmp_path / "node1") as two,
    ):
        assert (one.wait(PATIENCE_S), two.wait(PATIENCE_S)) == (2, 2), one.text + two.text
        assert list((tmp_path / "run").iterdir()) == []
        return one, two


@pytest.mark.slow
def test_other_data_and_weights_behind_the_same_paths_end_all_ranks(
    settings: Path, shards: Path, tmp_path: Path
) -> None:
    config = load_config(TrainConfig, [settings], ["output=unused", "data.shards=unused"])
    for name in ("node0", "node1"):
        (tmp_path / name / "start").mkdir(parents=True)
        save_module(
            VidTwin(config.model), tmp_path / name / "start" / "model.safetensors"
        )  # random, so each another one
    (tmp_path / "node0" / "data").symlink_to(shards)
    write_dataset(tmp_path / "node1" / "data", split_into_shards(make_clips(13), [5]))
    node, sha = re.escape(str(tmp_path / "node")), r"[0-9a-f]{16}\.\.\."
    for job in two_folders(tmp_path, settings, "data.shards=data", "init_from=start"):
        (line,) = refusals(job)
        for key, name, fact, kind in (
            ("data.shards", "data", "index", "datasets"),
            ("init_from", "start", "sha256", "files"),
        ):
            sides = [rf"{node}{number}/{name} \({fact} {sha}\) on rank {number}" for number in (0, 1)]
            assert re.search(rf"{key}: {' and '.join(sides)} are other {kind}[;.]", line), line
        assert "snapshots" not in line


@pytest.mark.slow
def test_data_of_which_one_node_can_take_nothing_end_all_ranks(settings: Path, shards: Path, tmp_path: Path) -> None:
    """The clips of the second node are too short; only that node's rank finds this out, after the ranks have met."""
    for name in ("node0", "node1"):
        (tmp_path / name).mkdir()
    (tmp_path / "node0" / "data").symlink_to(shards)
    write_dataset(tmp_path / "node1" / "data", split_into_shards(make_clips(12, frames=(2,)), [4]))
    one, two = two_folders(tmp_path, settings, "data.shards=data")
    (of_two,) = refusals(two)
    assert refusals(one) == [of_two.replace("launch/train.py: ", "launch/train.py: rank 1: ")]


@pytest.mark.slow
def test_of_two_commands_on_one_port_the_second_ends_and_names_the_port(
    settings: Path, shards: Path, tmp_path: Path
) -> None:
    """Which comes second, the machine decides. The first trains to its end."""
    port = free_port()
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(port)]
    outputs = [tmp_path / "one", tmp_path / "two"]
    words = [[TRAIN, "--config", str(settings), f"data.shards={shards}", f"output={output}"] for output in outputs]
    with (
        started([*deepspeed, *words[0]], tmp_path / "one.log") as one,
        started([*deepspeed, *words[1]], tmp_path / "two.log") as two,
    ):
        statuses = [one.wait(PATIENCE_S), two.wait(PATIENCE_S)]
        assert sorted(statuses) == [0, 2], one.text[-3000:] + two.text[-3000:]
        refused, other = (outputs[0], outputs[1]) if statuses[0] else (outputs[1], outputs[0])
        (line,) = refusals(one if statuses[0] else two)
        assert f"another run has port {port} of 127.0.0.1, begun by process " in line
        assert f"output={other} there and output={refused} here" in line
        assert "--master_port" in line
    assert [row["step"] for row in logged(other)] == list(range(1, 17))
    assert not refused.exists()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_at_the_same_port(settings: Path, shards: Path, tmp_path: Path) -> None:
    """One rank is killed, and the command is given again at once, while the rest of the first start still ends."""
    port, output = free_port(), tmp_path / "run"
    command = node(0, 1, 2, port, TRAIN, "--config", settings, f"data.shards={shards}", f"output={output}")
    with started([*command, "steps=100000"], tmp_path / "first.log") as first:
        wait_for_checkpoint(output, PATIENCE_S)
        kill_rank(first, 1)
        with started([*command, "steps=100000"], tmp_path / "second.log") as second:
            assert first.wait(PATIENCE_S) == 128 + signal.SIGKILL
            done = max(checkpoints(output))
            second.wait_for(f"going on after step {done}", PATIENCE_S)
            wait_for_step(output, done + 1, PATIENCE_S)
            second.process.send_signal(signal.SIGUSR1)
            assert second.wait(PATIENCE_S) == 0, second.text[-3000:]


def test_a_missing_rank_is_named(settings: Path, shards: Path, tmp_path: Path) -> None:
    port = free_port()
    words = ["--config", settings, f"data.shards={shards}", f"output={tmp_path / 'run'}", "collective_timeout=0.1"]
    with started(node(0, 2, 1, port, *IMPATIENT, *words), tmp_path / "node0.log") as job:
        job.wait_for(f"waiting for rank 1 of 2 at 127.0.0.1:{port}\n", PATIENCE_S)
        assert job.wait(PATIENCE_S) == 1
        (line,) = refusals(job)
        assert f"rank 1 of 2 did not come to 127.0.0.1:{port} within collective_timeout=0.1 minutes" in line
        assert "Traceback" not in job.text


@pytest.mark.slow
def test_torchrun_starts_its_ranks_again_in_the_store_of_the_first_attempt(
    settings: Path, shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    torchrun = [Path(sys.executable).parent / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    words = ["--max-restarts=1", TRAIN, "--config", settings, f"data.shards={shards}", f"output={output}"]
    with started([*torchrun, *words, "steps=200"], tmp_path / "log") as job:
        wait_for_checkpoint(output, PATIENCE_S)
        kill_rank(job, 1)
        job.wait_for("going on after step", PATIENCE_S)
        assert job.wait(PATIENCE_S) == 0, job.text[-3000:]
    wait_until(lambda: 200 in checkpoints(output), 10.0, "the last checkpoint")
