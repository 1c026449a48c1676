"""One run in parts on other ranks at other ZeRO stages, made once for the tests of resuming and of exporting."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.tools import warm


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
            done = warm.run(["-m", "tests.trainer.checkpoint.resharded", str(directory), "chain"], timeout=400)
            (directory / "log").write_text(done.stdout + done.stderr)
            if done.returncode == 0:
                (directory / "made").touch()
    assert (directory / "made").is_file(), (directory / "log").read_text()[-3000:]
    return directory
