"""One run in parts on other ranks at other ZeRO stages, made once for the tests of resuming and of exporting."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `resharded.chain` leaves, and its console in `log`; not to be changed.

    Where tests run in several processes, the first that asks makes it for all.
    """
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent
    directory = together / "chained"
    with (together / "chained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            directory.mkdir()
            command = [sys.executable, "-m", "tests.trainer.checkpoint.resharded", str(directory), "chain"]
            with (directory / "log").open("w") as log:
                done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=400)
            if done.returncode == 0:
                (directory / "made").touch()
    assert (directory / "made").is_file(), (directory / "log").read_text()[-3000:]
    return directory
