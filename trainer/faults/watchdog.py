"""A step that takes too long ends the process, and says where it stood.

Every rank has a watchdog of its own. A rank that hangs makes the others wait in a collective call, so all of them
exceed the budget of the same step, and each writes the Python stacks of all its threads before it exits. Two clocks:

* a Python thread, which names the step, writes to OUTPUT/hangs/rank-00000.txt and to standard error, waits a moment for
  the other ranks to do the same, and exits with `EXIT_STATUS`;
* where native code hangs and keeps Python's lock, no Python thread runs. faulthandler's C thread, which the first one
  winds up once a second, then writes the stacks to the file and exits with status 1.

Nothing here imports torch, and a step costs one assignment.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from trainer.config.running import TOGETHER_S

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h; a scheduler restarts on anything but 0
HELD_S = 3.0  # what the C clock allows beyond the budget: less, or the others' end comes before the hung rank's stacks
PERIOD_S = 1.0
STDERR = 2  # its file descriptor


class Watchdog:
    """Context in which `expect` says what happens now and how long it may take.

    Args:
        directory: for the reports; made once its parent is there, or when there is something to report.
        rank: of this process.
        enabled: False makes everything here do nothing.
        held: seconds beyond the budget after which the C clock strikes.
    """

    def __init__(self, directory: Path, rank: int, *, enabled: bool = True, held: float = HELD_S) -> None:
        self.directory, self.rank, self.enabled, self.held = directory, rank, enabled, held
        self._task: tuple[str, float, float] | None = None  # what, since, until
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._file: TextIO | None = None

    def __enter__(self) -> Watchdog:
        if self.enabled:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        self._ended.set()
        self._thread.join()
        if self._file is not None:
            self._file.close()
            _remove_if_empty(self.path)

    @property
    def path(self) -> Path:
        """This rank's report; those of earlier starts of the run stand above the newest."""
        return self.directory / f"rank-{self.rank:05d}.txt"

    def expect(self, what: str, minutes: float) -> None:
        """From now on `what` happens, and may take `minutes`."""
        now = time.monotonic()
        self._task = (what, now, now + 60 * minutes)

    def _watch(self) -> None:
        while not self._ended.wait(self._pause()):
            task = self._task
            if task is None:
                continue
            what, since, until = task
            left = until - time.monotonic()
            if left <= 0:
                self._strike(what, time.monotonic() - since)
            faulthandler.dump_traceback_later(max(left, 0.0) + self.held, exit=True, file=self._descriptor())
        faulthandler.cancel_dump_traceback_later()

    def _pause(self) -> float:
        task = self._task
        return 0.05 if task is None else min(PERIOD_S, max(0.05, task[2] - time.monotonic()))

    def _descriptor(self) -> int:
        """Where the C clock writes: the report, which must be open before, or standard error before the run begins."""
        if self._file is None and self.directory.parent.is_dir():
            self._file = self._open()
        return STDERR if self._file is None else self._file.fileno()

    def _open(self) -> TextIO:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.path.open("a")

    def _strike(self, what: str, seconds: float) -> None:
        """Write the stacks, then end the process. It does not return."""
        # Perhaps it is the storage that hangs, and the report with it: then the C clock tells standard error.
        faulthandler.dump_traceback_later(TOGETHER_S + self.held, exit=True, file=STDERR)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        head = f"{now} rank {self.rank}: {what} has taken {seconds:.0f} s, more than its budget. All threads:\n"
        try:
            report = self._report(head)
        except OSError as error:
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
            report = f"{head.strip()} see above, because {self.path} cannot be written: {error}\n"
        # In one piece, because other ranks write to the same log now.
        sys.stderr.write(f"{report}rank {self.rank} exits with status {EXIT_STATUS}; its stacks are in {self.path}\n")
        sys.stderr.flush()
        time.sleep(TOGETHER_S)
        os._exit(EXIT_STATUS)

    def _report(self, head: str) -> str:
        self._file = self._file or self._open()
        begin = self.path.stat().st_size
        self._file.write(head)
        self._file.flush()
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        os.fsync(self._file.fileno())
        return self.path.read_bytes()[begin:].decode(errors="replace")


def _remove_if_empty(path: Path) -> None:
    """Without a hang there is no report, and without any rank's report no directory."""
    try:
        if path.stat().st_size == 0:
            path.unlink()
            path.parent.rmdir()
    except OSError:  # another rank's report is there, or another rank was faster
        return
