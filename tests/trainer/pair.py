"""Two gloo ranks of DeepSpeed on this machine, each a Python of its own."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.ports import free_port

PATIENCE_S = 540
GRACE_S = 15  # what the others still have when one rank has failed: they might wait for it for minutes


def run_two_ranks(module: str, directory: Path, *words: str, patience: float = PATIENCE_S, **variables: str) -> None:
    """Run `python -m MODULE DIRECTORY WORD ...` as two ranks that find each other; both must end well.

    Args:
        directory: gets their output as rank0.log and rank1.log.
        patience: seconds after which they are given up.
        variables: what else to set in their environment.
    """
    world = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    settings = world | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | variables
    logs = [directory / f"rank{rank}.log" for rank in (0, 1)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", module, str(directory), *words]
            with log.open("w") as output:
                environment = os.environ | settings | place
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        codes = _statuses(processes, patience)
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def shared_results(
    module: str, files: Sequence[Path], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What two ranks of a module leave in results.pt; they run once for all of these test files.

    Without a slow test among those that were asked for, the module is told `--quick`. Where tests run in several
    processes, the first that asks runs the ranks for all.
    """
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent
    directory = together / module
    mine = [item for item in request.session.items if item.path in files]
    quick = [] if any(item.get_closest_marker("slow") for item in mine) else ["--quick"]
    with (together / f"{module}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            directory.mkdir()
            run_two_ranks(module, directory, *quick)
    loaded: dict[str, Any] = torch.load(directory / "results.pt", weights_only=True)
    return loaded


def _statuses(processes: list[subprocess.Popen[bytes]], patience: float) -> list[int | None]:
    """How the ranks ended; None for one that was given up."""
    end = time.monotonic() + patience
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < end:
        if any(codes):
            end = min(end, time.monotonic() + GRACE_S)
        time.sleep(0.05)
    return codes
