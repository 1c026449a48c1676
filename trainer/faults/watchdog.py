"""Ends the process when a step takes too long, and writes where the process hung.

Every rank has a watchdog of its own. If one rank hangs, the others wait for it in a collective call. So all ranks
exceed the budget of the same step, and each writes the Python stacks of all its threads before it exits.

Two clocks run:

* A Python thread names the step, writes to OUTPUT/hangs/rank-00000.txt and to standard error, waits a moment so that
  the other ranks can do the same, and exits with `EXIT_STATUS`.
* If native code hangs while it holds Python's lock, no Python thread can run. For this case the thread restarts the
  timer of faulthandler's C thread once a second. When the timer is not restarted any more, the C thread writes the
  stacks to the file and exits with status 1.

This module does not import torch, and a step costs one assignment.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from trainer.config.running import TOGETHER_S

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h; a scheduler restarts on anything but 0
# Seconds beyond the budget after which the C clock strikes. They are few, because the end of the other ranks makes the
# launcher end the hung rank, and its stacks must be written before that.
HELD_S = 3.0
PERIOD_S = 1.0
STDERR = 2  # its file descriptor


class Watchdog:
    """Context in which `expect` names what the process does now and how long that may take.

    Args:
        directory: of the reports. It is created when its parent exists, or when there is something to report.
        rank: of this process.
        enabled: False turns the watchdog off.
        ask_for_more: called after the stacks are written, for what else can be said of the hang; returns lines, or
            nothing. It must not wait.
        held: seconds beyond the budget after which the C clock strikes.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        *,
        enabled: bool = True,
        ask_for_more: Callable[[], str] = str,
        held: float = HELD_S,
    ) -> None:
        self.ask_for_more = ask_for_more
        self.directory, self.rank, self.enabled, self.held = directory, rank, enabled, held
        self._task: tuple[str, float, float] | None = None  # its name, begin and latest end
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
        """This rank's report. A new report is appended to those of earlier starts of the run."""
        return self.directory / f"rank-{self.rank:05d}.txt"

    def expect(self, what: str, minutes: float) -> None:
        """Note that the process begins `what` now, and that it may take so many minutes."""
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
        """The file that the C clock writes to: the report, or standard error while the report cannot be opened.

        An error here would end the thread, and the C clock, which nobody restarts then, would end a healthy run.
        """
        with suppress(OSError):
            if self._file is None and self.directory.parent.is_dir():
                self._file = self._open()
        return STDERR if self._file is None else self._file.fileno()

    def _open(self) -> TextIO:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.path.open("a")

    def _strike(self, what: str, seconds: float) -> None:
        """Write the stacks, then end the process. This method does not return."""
        # If the storage hangs, writing the report hangs too. Then the C clock writes to standard error.
        faulthandler.dump_traceback_later(TOGETHER_S + self.held, exit=True, file=STDERR)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        head = f"{now} rank {self.rank}: {what} has taken {seconds:.0f} s, more than its budget. All threads:\n"
        try:
            report = self._report(head)
        except OSError as error:
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
            report = f"{head.strip()} see above, because {self.path} cannot be written: {error}\n"
        report += self.ask_for_more()
        # One write, because the other ranks write to the same log at this moment.
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
    """Remove an empty report, and the directory if no rank has a report."""
    try:
        if path.stat().st_size == 0:
            path.unlink()
            path.parent.rmdir()
    except OSError:  # the directory holds another rank's report, or another rank has removed it
        return
