"""Runs the demo's commands one after another: shown as one would type them, recorded, and skipped when they are done.

Each command runs in a process group of its own, so that a Ctrl-C in the terminal reaches only the demo. The demo passes
it on to the whole group once and waits until the group is empty: training writes a checkpoint, the builder keeps the
units that it has finished. It passes SIGTERM on and not SIGINT, at which the `deepspeed` launcher prints a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.store.files import atomic_file

GRACE_S = 60.0
"""Seconds that a command has for its end after Ctrl-C. A training step and a checkpoint of the demo take about one."""
POLL_S = 0.1


class CommandFailed(Exception):
    """A command ended with an error or without its result. The command's own output says why."""


@dataclass
class Record:
    """What the demo knows about one command."""

    title: str
    shown: str  # the command as one would type it
    seconds: float  # over all runs of the demo that worked on it
    finished: bool


class Commands:
    """The commands of one demo. FOLDER/stages.json has their records, so that a later run of the demo skips them.

    Attributes:
        records: of the commands that are done, in their order.

    Args:
        folder: of this demo.
        root: the project's folder, in which the commands run.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.records: list[Record] = []
        self._file, self._root = folder / "stages.json", root
        self._known: dict[str, Record] = {}
        if self._file.is_file():
            self._known = {item["title"]: Record(**item) for item in json.loads(self._file.read_text("utf-8"))}

    def run(self, title: str, command: list[str], result: Path, environment: dict[str, str] | None = None) -> None:
        """Run a command, unless an earlier run of the demo finished it and its result still exists.

        Args:
            title: names the command in the console and in its record.
            command: the program and its arguments.
            result: a file that exists when the command has done its work.
            environment: variables that the command gets in addition.
        Raises:
            CommandFailed: the command ended with an error or without its result.
            KeyboardInterrupt: Ctrl-C; nothing of the command is left running.
        """
        record = self._known.setdefault(title, Record(title, "", 0.0, finished=False))
        if record.finished and result.is_file():
            print(f"\n== {title}: done by an earlier run, in {record.seconds:.0f} s", flush=True)
            self.records.append(record)
            return
        record.shown, record.finished = shown(command, environment or {}, self._root), False
        print(f"\n== {title}\n$ {record.shown}", flush=True)
        begin = time.monotonic()
        try:
            status = run_command(command, self._root, environment or {})
            record.finished = status == 0 and result.is_file()
        finally:
            record.seconds = round(record.seconds + time.monotonic() - begin, 1)
            with atomic_file(self._file) as temporary:
                temporary.write_text(json.dumps([asdict(item) for item in self._known.values()], indent=1) + "\n")
        if not record.finished:
            raise CommandFailed(f"{title}: `{record.shown}` ended with status {status}, its result is not complete")
        self.records.append(record)


def shown(command: list[str], environment: dict[str, str], root: Path) -> str:
    """A command as one would type it in the folder `root`."""
    parts = [f"{key}={value}" for key, value in environment.items()]
    for argument in command:
        inside = argument.startswith(str(root) + os.sep)
        parts.append(shlex.quote(os.path.relpath(argument, root) if inside else argument))
    return " ".join(parts)


def run_command(command: list[str], folder: Path, environment: dict[str, str], grace: float = GRACE_S) -> int:
    """Run a command in `folder`, and return its exit status when no process of its group is left.

    Args:
        environment: variables that the command gets in addition.
        grace: seconds that its processes have for their end after Ctrl-C; those that are left are killed.
    Raises:
        KeyboardInterrupt: Ctrl-C; no process of the command's group is left.
    """
    sys.stdout.flush()
    child = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, process_group=0)
    try:
        return child.wait()
    finally:
        _end_group(child, grace)


def _end_group(child: subprocess.Popen[bytes], grace: float) -> None:
    """Ask what is left of a group to end, and wait; kill what is left after `grace` seconds or at a second Ctrl-C."""
    try:
        if child.returncode is None:  # the command has not ended by itself, so this is a Ctrl-C
            print("\nstopping: what is finished is kept; once more to stop at once", flush=True)
        if group_members(child.pid):
            _signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while group_members(child.pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    finally:
        if group_members(child.pid):
            _signal_group(child.pid, signal.SIGKILL)
        child.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the last process of the group has just ended
        os.killpg(group, number)


def group_members(group: int) -> list[int]:
    """Processes of a group that run. Zombies do not count: they have ended, and their parent has not yet noticed."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # the process has just ended
                continue
            if fields[0] != "Z" and int(fields[2]) == group:
                members.append(int(entry.name))
    return members
