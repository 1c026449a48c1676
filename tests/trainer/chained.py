"""One run in parts on other ranks at other ZeRO stages, made once for the tests of resuming and of exporting."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `redivided.chain` leaves, and its console in `log`; not to be changed."""
    directory = tmp_path_factory.mktemp("chained")
    command = [sys.executable, "-m", "tests.trainer.redivided", str(directory), "chain"]
    with (directory / "log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=400)
    assert done.returncode == 0, (directory / "log").read_text()[-3000:]
    return directory
