"""The request for NCCL's record, with a reader in place of torch's thread; and the variables in torch's own files."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainer.faults import flight_recorder
from trainer.faults.flight_recorder import DUMP, OLD_DUMP, OLD_SIZE, PIPE, SIZE, request_dump, switched_on
from trainer.faults.watchdog import EXIT_STATUS

ROOT = Path(__file__).parents[3]
NAMES = (DUMP, OLD_DUMP, OLD_SIZE, PIPE, SIZE, "TORCH_NCCL_DUMP_ON_TIMEOUT")
HANGING = """
import sys, time
from functools import partial
from pathlib import Path
from trainer.faults import watchdog
from trainer.faults.flight_recorder import request_dump
watchdog.TOGETHER_S = 0.1
with watchdog.Watchdog(Path(sys.argv[1]), rank=3, ask_for_more=partial(request_dump, 3)) as dog:
    dog.expect("step 2", 0.2 / 60)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    kept = dict(os.environ)
    for name in NAMES:
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(kept)


def test_a_hang_asks_for_the_record_beside_its_stacks(tmp_path: Path) -> None:
    with switched_on(tmp_path / "hangs", enabled=True):
        pipe = Path(f"{os.environ[PIPE]}3.pipe")
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # as torch's thread has it
        command = [sys.executable, "-c", HANGING, str(tmp_path / "hangs")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        asked = os.read(reader, 100)
        os.close(reader)
    assert done.returncode == EXIT_STATUS, done.stderr
    assert asked == b"1"
    assert f"rank 3: the last collective calls go to {tmp_path}/hangs/nccl-rank-3; " in done.stderr
    assert f"fr_trace -p nccl-rank- {tmp_path}/hangs`" in done.stderr
    assert "in <module>" in done.stderr
    assert not pipe.parent.exists()


@pytest.mark.parametrize("pipe", ["no pipe", "a pipe that nobody reads", "a pipe that is full"])
def test_a_request_never_waits(tmp_path: Path, pipe: str) -> None:
    """A process that waited would be ended by the timeout."""
    os.environ[PIPE] = f"{tmp_path}/"
    reader = None
    if pipe != "no pipe":
        os.mkfifo(tmp_path / "0.pipe")
    if pipe == "a pipe that is full":
        reader = os.open(tmp_path / "0.pipe", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(tmp_path / "0.pipe", os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            _fill(writer)
    code = "from trainer.faults.flight_recorder import request_dump; print(request_dump(0))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    expected = "rank 0: NCCL's flight recorder was not asked (Resource temporarily unavailable)"
    assert done.stdout.strip() == (expected if reader is not None else "")


def _fill(pipe: int) -> None:
    while True:
        os.write(pipe, bytes(4096))


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    os.environ.update({OLD_SIZE: "0", OLD_DUMP: "/elsewhere/trace_", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"})
    with switched_on(tmp_path, enabled=True):
        assert {name: os.environ.get(name) for name in NAMES if name != PIPE} == {
            OLD_SIZE: "0",
            SIZE: None,
            OLD_DUMP: "/elsewhere/trace_",
            DUMP: None,
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
        }


def test_gloo_has_no_record(tmp_path: Path) -> None:
    with switched_on(tmp_path, enabled=False):
        assert not [name for name in NAMES if name in os.environ]
        assert request_dump(0) == ""


def test_torch_still_reads_these_variables() -> None:
    """The builds of torch without CUDA have the recorder too; of NCCL's own variables they have the header."""
    package = Path(torch.__file__).parent
    with (package / "lib" / "libtorch_cpu.so").open("rb") as file:
        library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name in (DUMP, OLD_DUMP, SIZE, OLD_SIZE):
            assert library.find(name.encode()) >= 0, name
    header = (package / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp").read_text()
    for name in (PIPE, OLD_SIZE, "TORCH_NCCL_DUMP_ON_TIMEOUT", 'rank, ".pipe"'):
        assert name in header, name
    recorder = (package / "include/torch/csrc/distributed/c10d/FlightRecorder.hpp").read_text()
    assert f"{flight_recorder.CALLS});" in recorder
