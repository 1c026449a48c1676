"""With which status the scripts end, by how what they call ended: schedulers and the next script go by nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from data_pipeline.build.dataset_job import DatasetResult
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.ray_cluster import Interrupted
from data_pipeline.store.base import StoreError
from launch import build_shards, train, training_errors, training_process
from launch.demo import __main__ as demo
from launch.demo.commands import CommandFailed
from tests.tools import warm
from trainer.config.train import TrainConfig
from trainer.faults.launcher import ENDED, Launcher
from trainer.loop import Failed, Stopped
from trainer.run import Refused, Unready

ROOT = Path(__file__).parents[2]
WORDS = ["data.shards=s3://unused/shards", "loss.perceptual=none"]
Train = Callable[..., int]


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Train]:
    """launch/train.py as a process would run it, but for the training itself, which ends as `outcome` says."""
    interrupt = signal.getsignal(signal.SIGINT)
    command: list[Launcher | None] = [None]
    monkeypatch.setattr(train.launcher, "find", lambda: command[0])
    monkeypatch.setattr(
        training_errors, "threading", SimpleNamespace(Timer=mock.Mock())
    )  # it would end this process later
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def ended(outcome: Stopped | BaseException, *words: str, started_by: Launcher | None = None, rank: int = 0) -> int:
        def run(config: TrainConfig, method: object, launcher: Launcher | None, report: object) -> Stopped:
            assert launcher is started_by
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        command[0] = started_by
        monkeypatch.setattr("trainer.run.run", run)
        if rank:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(sys, "argv", ["train.py", f"output={tmp_path / 'run'}", *WORDS, *words])
        return train.main()

    yield ended
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize(
    ("outcome", "words", "expected", "line"),
    [
        (Stopped.FINISHED, [], 0, ""),
        (Stopped.FINISHED, ["preempted_status=75"], 0, ""),
        (Stopped.PREEMPTED, [], 0, ""),
        (Stopped.PREEMPTED, ["preempted_status=75"], 75, ""),
        (Refused("set x=1"), [], 2, "launch/train.py: set x=1\n"),
        (Unready("the store is away"), [], 1, "launch/train.py: the store is away\n"),
        (Failed("said already"), [], 2, ""),
        (Stopped.FINISHED, ["steps=0"], 2, "launch/train.py: steps=0 must be at least 1\n"),
    ],
)
def test_training_ends_with_the_status_of_its_outcome(
    status: Train,
    capsys: pytest.CaptureFixture[str],
    outcome: Stopped | BaseException,
    words: list[str],
    expected: int,
    line: str,
) -> None:
    assert status(outcome, *words) == expected
    assert capsys.readouterr().err == line


def test_what_a_process_has_printed_arrives_before_it_ends() -> None:
    """It ends without Python's own exit, and a pipe or a file is written to in large pieces."""
    program = """
import sys
from launch.training_process import end_process
sys.stderr = open(2, "w", buffering=4096)
print("out")
print("err", end="", file=sys.stderr)
end_process(7)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err")


@pytest.mark.parametrize(("outcome", "words"), [(Refused("set x=1"), []), (Stopped.FINISHED, ["steps=0"])])
def test_one_rank_says_it_and_all_have_the_status(
    status: Train, capsys: pytest.CaptureFixture[str], outcome: Stopped | BaseException, words: list[str]
) -> None:
    assert status(outcome, *words, rank=1) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_an_error_is_shown_before_others_break_and_may_succeed_when_started_again(
    status: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DeepSpeed's launcher looks once a second: the rank that failed must be the first it sees, so it ends last."""
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(
        training_process, "time", SimpleNamespace(sleep=lambda s: said.append((s, capsys.readouterr().err)))
    )
    assert status(ZeroDivisionError("a defect")) == 1
    timer: Any = training_errors.threading.Timer
    timer.assert_called_once_with(training_errors.GIVE_UP_S, os._exit, (1,))
    ((seconds, text),) = said
    assert seconds > 1
    assert "ZeroDivisionError: a defect" in text


def test_without_the_command_that_started_it_nothing_begins(
    status: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(AssertionError("it began"), started_by=ENDED) == 128 + signal.SIGTERM
    assert "ended before its start, because the deepspeed command has ended" in capsys.readouterr().err
    assert status(AssertionError("it began"), started_by=ENDED, rank=1) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""
    started = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    monkeypatch.undo()
    assert Launcher(os.getpid(), started).alive()


# ---- shards ---------------------------------------------------------------------------------------------------------


def built(failed: dict[int, str]) -> Any:
    """A run over three units that left some of them out."""
    plan: Any = SimpleNamespace(units=3)
    return DatasetResult(plan, UnitsRun(failed=failed), None)


@pytest.mark.parametrize(
    ("outcome", "expected", "words"),
    [
        (built({1: "no memory", 0: "killed"}), 1, ["unit 000000 failed: killed\nunit 000001 failed: no memory\n"]),
        (built({}), 1, ["launch/build_shards.py: 0 of 3 units failed; run the same command again"]),
        (ValueError("set a=1"), 2, ["launch/build_shards.py: set a=1\n"]),
        (StoreError("away"), 1, ["launch/build_shards.py: away\n"]),
        (RuntimeError("no Ray"), 1, ["launch/build_shards.py: no Ray\n"]),
        (Interrupted(), 130, ["launch/build_shards.py: interrupted; run the same command again to go on"]),
        (KeyboardInterrupt(), 130, ["launch/build_shards.py: interrupted; run the same command again to go on"]),
    ],
)
def test_a_build_ends_with_the_status_of_its_outcome(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    outcome: Any,
    expected: int,
    words: list[str],
) -> None:
    def build(config: object, **flags: bool) -> DatasetResult:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    monkeypatch.setattr("data_pipeline.build.builder.build", build)
    assert build_shards.main(["--source", str(tmp_path), "--output", str(tmp_path / "shards")]) == expected
    said = capsys.readouterr()
    assert said.out == ""
    assert all(text in said.err for text in words), said.err


@pytest.mark.parametrize("word", ["--append", "--retry-quarantined"])
def test_what_is_asked_of_a_build_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str) -> None:
    asked: list[dict[str, bool]] = []

    def build(config: object, **flags: bool) -> DatasetResult:
        asked.append(flags)
        raise ValueError("enough")

    monkeypatch.setattr("data_pipeline.build.builder.build", build)
    build_shards.main(["--source", str(tmp_path), "--output", str(tmp_path / "shards"), word])
    flags = {"append": "--append", "retry_quarantined": "--retry-quarantined"}
    assert asked == [{name: word == flag for name, flag in flags.items()} | {"from_plan": False}]


def test_the_process_of_a_build_has_that_status(tmp_path: Path) -> None:
    """Its last lines leave Python without the usual way out."""
    done = warm.run(["launch/build_shards.py", "--status", "--output", str(tmp_path)], timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("launch/build_shards.py: ")


# ---- the demo -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "expected", "text"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (KeyboardInterrupt(), 130, "launch.demo: interrupted; the same command goes on"),
        (CommandFailed("train: it ended with status 2"), 1, "launch.demo: train: it ended with status 2"),
        (ValueError("no such folder"), 2, "launch.demo: no such folder"),
    ],
)
def test_the_demo_ends_with_the_status_of_its_outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome: Any, expected: int, text: str
) -> None:
    def run(*words: object) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return int(outcome)

    monkeypatch.setattr("launch.demo.run.demo", run)
    assert demo.main([]) == expected
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(("of_demo", "of_generation"), [(0, 0), (1, 0), (0, 1)])
def test_clips_are_generated_also_where_the_demo_missed_something_and_the_status_says_it(
    monkeypatch: pytest.MonkeyPatch, of_demo: int, of_generation: int
) -> None:
    asked: list[object] = []

    def generate(*words: object) -> int:
        asked.append(words[-1])
        return of_generation

    monkeypatch.setattr("launch.demo.run.demo", lambda *words: of_demo)
    monkeypatch.setattr("launch.demo.generate.generate", generate)
    assert demo.main(["--generate", "--diffusion-steps", "7"]) == max(of_demo, of_generation)
    assert demo.main([]) == of_demo
    assert asked == [7]
    assert demo.main(["--diffusion-steps", "7"]) == 2, "without --generate it would do nothing"
