"""Told to stop at moments that no step sees: by the end of the launcher, and while a finished run uploads."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from torch import Tensor

from data_pipeline.read.loader import Batch
from data_pipeline.store.local import LocalStore
from tests.trainer.pair import run_two_ranks
from tests.trainer.toy import STEPS, Toy, ToyBuilder, losses, rows, toy
from trainer import distributed
from trainer.config.train import TrainConfig
from trainer.faults.launcher import ENDED, Launcher
from trainer.faults.stop_request import SIGNALS, StopRequest
from trainer.loop import Failed, Stopped
from trainer.run import run


def test_the_end_of_the_launcher_asks_for_a_stop(
    config: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that ended before the run began, one that ends in its third step, and one that lives on."""
    assert run(config, toy(), ENDED) is Stopped.PREEMPTED
    assert "stopped by end of the deepspeed command before training began" in capsys.readouterr().out
    assert not list(Path(config.output).glob("*/step-*"))
    with subprocess.Popen(["sleep", "600"]) as process:
        started = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
        launcher = Launcher(process.pid, started)

        class Killing(Toy):
            def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
                if step == 2:
                    process.kill()
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still listed
                return super().step(batch, step, observed)

        class Builder(ToyBuilder):
            def build(self, fresh: bool) -> Toy:  # type: ignore[override]
                return Killing(self.config, self.ranks, self.validation, self.mishaps)

        assert run(config, Builder, launcher) is Stopped.PREEMPTED
    assert [row["step"] for row in rows(config)] == [1, 2, 3]
    me = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    assert run(config, toy(), Launcher(os.getpid(), me)) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_a_signal_shortens_the_wait_for_the_last_upload_and_the_same_command_goes_on_with_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.checkpoint.upload = str(tmp_path / "remote")
    config.checkpoint.every, config.checkpoint.upload_wait_stopped = STEPS, 0.3
    monkeypatch.setattr("trainer.checkpoint.joint_upload.FINISH_POLL_S", 0.05)
    release, write_file = threading.Event(), LocalStore.write_file

    def hanging(store: LocalStore, key: str, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        release.wait(600)
        write_file(store, key, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write_file", hanging)
        assert run(config, toy()) is Stopped.PREEMPTED
        release.set()
    text = capsys.readouterr().out
    assert f"finished {STEPS} steps" in text
    assert "the upload did not end in 0.3 s; the same command goes on with it" in text
    for thread in threading.enumerate():
        if thread.name == "checkpoint-upload":
            thread.join(60)
    (tmp_path / "remote" / f"step-{STEPS:08d}" / "COMPLETE").unlink()  # as where the process ended with its thread
    assert run(config, toy()) is Stopped.FINISHED
    assert (tmp_path / "remote" / f"step-{STEPS:08d}" / "COMPLETE").is_file()


@pytest.mark.parametrize("fails", [False, True])
def test_the_watchdog_sees_the_ranks_part(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    seen, stop = [], distributed.stop

    def watched() -> None:
        seen.append("watchdog" in {thread.name for thread in threading.enumerate()})
        stop()

    monkeypatch.setattr(distributed, "stop", watched)
    config.optim.max_skipped = 2
    if fails:
        with pytest.raises(Failed):
            run(config, toy(broken_from=0))
    else:
        run(config, toy())
    assert seen == [True]
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


LEAVING = """
import os, signal, sys, time
import torch.distributed as dist
from trainer.faults.stop_request import SIGNALS, StopRequest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with StopRequest(dist.group.WORLD) as stop_request:
    print("ready", flush=True)
    while not stop_request.stop_requested():
        time.sleep(0.01)
    print("to a tee that is gone", flush=True)
    print("to a terminal that is gone", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write(stop_request.reason)
for number in SIGNALS:
    os.kill(os.getpid(), number)
sys.exit(75)
"""


def test_a_closed_terminal_asks_for_a_stop_and_no_later_signal_changes_the_status(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVING, str(tmp_path / "reason")],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # what tells it when the terminal closes
    )
    try:
        os.close(slave)
        with process.stdout as tee:  # type: ignore[union-attr]
            assert tee.readline() == b"ready\n"
        os.close(master)
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "reason").read_text() == "SIGHUP"


def test_signals_of_a_run_that_failed_are_as_they_were_and_nohup_stays(environment: None) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(ZeroDivisionError), StopRequest(None):
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest(None) as stop_request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop_request.stop_requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop_request.stop_requested()
    with StopRequest(None, ENDED) as stop_request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_request.stop_requested()
        assert stop_request.reason == "SIGTERM"  # which came first


@pytest.mark.parametrize("before", [0, 2])
def test_a_stop_in_the_start_ends_it_without_a_step(
    config: TrainConfig, undisturbed: list[tuple[int, float]], before: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop is requested while the method is built: it is not asked to load, which takes long, or to step."""
    if before:
        assert run(config, toy(stop_at=before)) is Stopped.PREEMPTED
    saved = sorted(Path(config.output).glob("*/step-*"))

    class Stopping(ToyBuilder):
        def build(self, fresh: bool) -> Toy:  # type: ignore[override]
            os.kill(os.getpid(), signal.SIGTERM)
            method = super().build(fresh)
            method.load = method.step = None  # type: ignore[method-assign, assignment]
            return method

    assert run(config, Stopping) is Stopped.PREEMPTED
    text = "stopped by SIGTERM before training began: nothing was trained since the last checkpoint"
    assert text in capsys.readouterr().out
    assert sorted(Path(config.output).glob("*/step-*")) == saved
    assert len(saved) == (before > 0)
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed


@pytest.fixture(scope="module")
def stalled(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the two ranks of stalled.py printed."""
    directory = tmp_path_factory.mktemp("stalled")
    run_two_ranks("tests.trainer.faults.stalled", directory, str(toy_data), patience=120)
    return [(directory / f"rank{rank}.log").read_text() for rank in (0, 1)]


def test_ranks_told_while_one_waits_for_data_save_the_last_whole_step_and_go_on_from_it(stalled: list[str]) -> None:
    """Two ranks; a data worker of one hangs, and the signal comes to the other one, which has its batch."""
    assert "stopped by a signal to another rank after step 3, which is saved" in stalled[0]
    assert "finished 6 steps" in stalled[0]


def test_an_error_of_one_rank_is_printed_before_anything_waits_and_the_rank_that_waits_for_it_follows(
    stalled: list[str],
) -> None:
    """Rank 0 is in a collective call, and leaves it at the end of rank 1's process, long before its timeout."""
    waiting, raising = stalled
    error = raising.index("RuntimeError: broken on purpose")
    assert error < raising.index("breaks off") < raising.index("ends with 1")
    assert raising.count("RuntimeError: broken on purpose") == 1
    broken = waiting[waiting.index("Traceback") :]
    assert "in all_reduce" in broken
    assert "Connection closed by peer" in broken
    assert "Timed out" not in broken
    assert broken.endswith("ends with 1\n")
