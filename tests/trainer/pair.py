"""Two gloo ranks of DeepSpeed on this machine, each a process of its own."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import warm

PATIENCE_S = 540


def run_two_ranks(module: str, directory: Path, *words: str, patience: float = PATIENCE_S, **variables: str) -> None:
    """Run `python -m MODULE DIRECTORY WORD ...` as two ranks that find each other; both must end well.

    The ranks are forks of the warm Python (tests/tools/warm.py), which has imported DeepSpeed.

    Args:
        directory: gets their output as rank0.log and rank1.log.
        patience: seconds after which they are given up.
        variables: what a process must find in its environment when it starts. The ranks of a call with variables are
            forks of a Python that has imported nothing.
    """
    command = ["-m", "tests.trainer.rank_forks", str(patience), module, str(directory), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | variables
    limit = patience + 60
    if variables:
        done = subprocess.run(
            [sys.executable, *command], cwd=warm.ROOT, env=environment, capture_output=True, text=True, timeout=limit
        )
    else:
        done = warm.run(command, environment=environment, timeout=limit)
    logs = [log.read_text()[-3000:] for log in sorted(directory.glob("rank*.log"))]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])


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
