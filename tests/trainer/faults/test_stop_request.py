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

from data_pipeline.store.local import LocalStore
from tests.trainer.pair import run_two_ranks
from tests.trainer.toy import STEPS, losses, rows, toy
from trainer import distributed
from trainer.config.train import TrainConfig
from trainer.faults.launcher import ENDED, Launcher
from trainer.faults.stop_request import SIGNALS, Preemption
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
        build = toy()

        def killing(config, ranks, fresh):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            method = build(config, ranks, fresh)
            step = method.step

            def third(batch, number):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
                if number == 2:
                    process.kill()
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still listed
                return step(batch, number)

            method.step = third  # type: ignore[method-assign]
            return method

        assert run(config, killing, launcher) is Stopped.PREEMPTED
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
from trainer.faults.stop_request import SIGNALS, Preemption

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with Preemption(dist.group.WORLD) as preemption:
    print("ready", flush=True)
    while not preemption.told():
        time.sleep(0.01)
    print("to a tee that is gone", flush=True)
    print("to a terminal that is gone", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write(preemption.reason)
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
    with pytest.raises(ZeroDivisionError), Preemption(None):
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Preemption(None) as preemption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not preemption.told()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.told()
    with Preemption(None, ENDED) as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.told()
        assert preemption.reason == "SIGTERM"  # which came first


@pytest.mark.parametrize("before", [0, 2])
def test_a_stop_in_the_start_ends_it_without_a_step(
    config: TrainConfig, undisturbed: list[tuple[int, float]], before: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told while the method is built: it is not asked to load, which takes long, or to step."""
    if before:
        assert run(config, toy(told_at=before)) is Stopped.PREEMPTED
    saved = sorted(Path(config.output).glob("*/step-*"))

    def told(config, ranks, fresh):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        os.kill(os.getpid(), signal.SIGTERM)
        method = toy()(config, ranks, fresh)
        method.load = method.step = None  # type: ignore[method-assign, assignment]
        return method

    assert run(config, told) is Stopped.PREEMPTED
    text = "stopped by SIGTERM before training began: nothing was trained since the last checkpoint"
    assert text in capsys.readouterr().out
    assert sorted(Path(config.output).glob("*/step-*")) == saved
    assert len(saved) == (before > 0)
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config) == undisturbed


def test_ranks_told_while_one_waits_for_data_save_the_last_whole_step_and_go_on_from_it(
    toy_data: Path, tmp_path: Path
) -> None:
    """Two ranks; a data worker of one hangs, and the signal comes to the other one, which has its batch."""
    run_two_ranks("tests.trainer.faults.stalled", tmp_path, str(toy_data), patience=90)
    log = (tmp_path / "rank0.log").read_text()
    assert "stopped by a signal to another rank after step 3, which is saved" in log
    assert "finished 6 steps" in log
