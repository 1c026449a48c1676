"""A run's directory: what cannot be written is refused, and a second run waits for the first or is refused."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.distributed import Ranks
from trainer.faults import output_lock
from trainer.faults.output_lock import InUse, Unwritable, held

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
os.write(handle, b"process 1 on elsewhere")
if os.fork():  # the lock lives in the child, as in a data worker of a killed rank
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until what is yielded is closed."""
    command = [sys.executable, "-c", HOLD, str(directory / output_lock.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_what_cannot_be_written_is_refused(alone: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, reason in ((tmp_path / "file" / "run", "Not a directory"), (Path("/proc/run"), "No such file")):
        message = rf"output={place} cannot be written \({reason}.*choose another output"
        with pytest.raises(Unwritable, match=message), held(place, alone, print):
            pytest.fail("written nowhere")


def test_a_directory_that_was_made_for_nothing_goes_again(alone: Ranks, tmp_path: Path) -> None:
    place = tmp_path / "a" / "run"
    for written in (False, True):
        with held(place, alone, print):
            assert (place / output_lock.LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
            if written:
                (place / "config.yaml").write_text("")
                (place / output_lock.LOCK).write_text(f"process 1234567890 on {'a' * 60}\n")  # of a holder before
        assert place.exists() == written
        assert place.parent.exists() == written
    with held(place, alone, print):
        assert (place / output_lock.LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        (place / "config.yaml").unlink()
    assert place.exists()  # it was there before


def test_a_directory_that_was_there_is_left_as_it_was(alone: Ranks, tmp_path: Path) -> None:
    """A start that is refused leaves no lock where there was none, and leaves one where there was one."""
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="refused"), held(tmp_path, alone, print):
        raise ValueError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / output_lock.LOCK).write_text("process 1 on elsewhere\n")
    with held(tmp_path, alone, print):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"mine", output_lock.LOCK}


def test_a_run_that_ends_is_waited_for(alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends while the third pause is made; it has ended when the last of its processes has closed its output."""
    said: list[str] = []
    pauses: list[float] = []
    with holder(tmp_path) as other:

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                other.communicate(timeout=60)

        monkeypatch.setattr(output_lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
        with held(tmp_path, alone, said.append):
            assert len(pauses) >= 3
        assert said == [f"waiting up to 120 s for process 1 on elsewhere, which still uses {tmp_path}"]
    with held(tmp_path, alone, said.append):
        assert len(said) == 1


def test_a_run_that_goes_on_is_left_alone(alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lock, "WAIT", 0.5)
    message = r"in use by process 1 on elsewhere; choose another output, or stop that run"
    with holder(tmp_path), pytest.raises(InUse, match=message), held(tmp_path, alone, print):
        pytest.fail("two runs in one directory")
