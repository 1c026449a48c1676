"""Stages as child processes: shown as one would type them, skipped when done, stopped with everything they started.

A stage runs in a session of its own, so that Ctrl-C reaches only us; we pass it on once, wait for the whole process
group to end by itself (training writes a checkpoint, the builder keeps its finished units), and kill what remains.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 60.0  # for a stage that was told to stop; a training step and a checkpoint take about a second


class Interrupted(Exception):
    """The user stopped the demo; nothing it started is left running."""


class StageFailed(Exception):
    """A command ended with an error; its own output says why."""


@dataclass
class Stage:
    """One command of the demo."""

    title: str
    command: list[str]
    done: Callable[[], bool]  # its result is there and complete
    environment: dict[str, str] = field(default_factory=dict)
    # A word of the command lines of those who are to be interrupted, where not everybody should be: a launcher that is
    # interrupted prints a traceback, and ends by itself when its ranks do.
    listener: str = ""


@dataclass
class Record:
    """What is known about a stage: kept in a file, so that a second run can go on and still show it."""

    title: str
    shown: str
    seconds: float  # over all runs that worked on it
    finished: bool


def shown(stage: Stage, root: Path) -> str:
    """The command as one would type it in the project's folder."""
    words = [f"{key}={value}" for key, value in stage.environment.items()]
    for word in stage.command:
        short = os.path.relpath(word, root) if word.startswith(str(root) + os.sep) else word
        words.append(shlex.quote(short))
    return " ".join(words)


class Runner:
    """Runs stages in order and remembers them, by title, in `FOLDER/stages.json`."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._file = folder / "stages.json"
        self._root = root
        self._known: dict[str, Record] = {}
        self.records: list[Record] = []
        if self._file.is_file():
            self._known = {item["title"]: Record(**item) for item in json.loads(self._file.read_text("utf-8"))}

    def run(self, stage: Stage) -> None:
        """Run a stage, or skip it when an earlier run finished it.

        Raises:
            StageFailed: it ended with an error or left its result incomplete.
            Interrupted: the user stopped the demo.
        """
        record = self._known.get(stage.title) or Record(stage.title, "", 0.0, False)
        if record.finished and stage.done():
            print(f"\n== {stage.title}: done by an earlier run, in {record.seconds:.0f} s", flush=True)
            self.records.append(record)
            return
        record.shown = shown(stage, self._root)
        print(f"\n== {stage.title}\n$ {record.shown}", flush=True)
        began = time.monotonic()
        try:
            status = run_in_group(stage.command, self._root, stage.environment, listener=stage.listener)
            record.finished = status == 0 and stage.done()
        finally:
            record.seconds = round(record.seconds + time.monotonic() - began, 1)
            self._known[stage.title] = record
            self._save()
        if not record.finished:
            raise StageFailed(f"{stage.title}: `{record.shown}` ended with status {status}, its result is not complete")
        self.records.append(record)

    def _save(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps([vars(record) for record in self._known.values()], indent=1) + "\n", "utf-8")
        partial.replace(self._file)


def run_in_group(
    command: list[str], folder: Path, environment: dict[str, str], grace: float = GRACE_S, listener: str = ""
) -> int:
    """Run a command in its own session and wait until nothing of it is left.

    Args:
        command, environment: what to run, and the variables to add.
        folder: where.
        grace: seconds it has after an interrupt.
        listener: see `Stage`.
    Returns:
        Its exit status.
    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived; the whole group has ended.
    """
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in signals}
    try:
        sys.stdout.flush()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_stop_with_parent,  # we start no thread before this, so code between fork and exec is safe
        )
        status: int | None = None
        while status is None and not told:
            try:
                status = child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        if told:
            _stop(child, told, grace, listener)
            raise Interrupted
        _end_group(child.pid, 5.0)
        assert status is not None
        return status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop_with_parent() -> None:
    """Have the kernel interrupt the command when we die without a chance to pass a signal on (kill -9)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))


def group_members(group: int) -> list[int]:
    """Processes of a group that still run; ended ones that nobody has collected do not count."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it ended while we looked
                continue
            if fields[0] != "Z" and int(fields[2]) == group:
                members.append(int(entry.name))
    return members


def _stop(child: subprocess.Popen[bytes], told: list[int], grace: float, listener: str) -> None:
    """Pass one interrupt on and wait; a second one from the user ends the waiting."""
    print("\nstopping: what is finished is kept; once more to stop at once", flush=True)
    _interrupt(child.pid, listener)
    end = time.monotonic() + grace
    while time.monotonic() < end and len(told) < 2 and group_members(child.pid):
        child.poll()
        time.sleep(0.1)
    _end_group(child.pid, 0.0)
    child.wait()


def _interrupt(group: int, listener: str) -> None:
    """Interrupt a group, or the listeners in it; where there is none yet, end the group without ado."""
    if not listener:
        os.killpg(group, signal.SIGINT)
        return
    listeners = [process for process in group_members(group) if _runs(process, listener)]
    for process in listeners:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGINT)
    if not listeners:
        os.killpg(group, signal.SIGTERM)


def _runs(process: int, script: str) -> bool:
    """Whether a process is Python running this script itself, and no launcher that has its name among the arguments."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended while we looked
        return False
    first = next((word for word in words[1:] if word == b"-m" or not word.startswith(b"-")), b"")
    return os.fsdecode(first).endswith(script)


def _end_group(group: int, grace: float) -> None:
    """Wait for a group to be empty, then kill what remains."""
    end = time.monotonic() + grace
    while group_members(group):
        if time.monotonic() >= end:
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.05)
