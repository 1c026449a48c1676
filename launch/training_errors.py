"""The error that ends one process of a training: how it is told, and the exit status that it gives."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable

from launch.exit_status import FAILED, REFUSED, complain

GIVE_UP_S = 30.0
"""Seconds between an error and the latest end of its process: to break off takes 5 s at most, and then `LATER_S`."""


class ErrorReport:
    """Tells the error that ends a training, once, and lets the process end within `GIVE_UP_S` seconds of it.

    Args:
        script: how messages begin.
        output: of the run.
        explain: may say more of the error.
    """

    def __init__(self, script: str, output: str, explain: Callable[[BaseException], None]) -> None:
        self.script, self.output, self.explain = script, output, explain
        self._told: list[BaseException] = []

    def __call__(self, error: BaseException) -> None:
        """Tell an error; one that was told before is passed over."""
        from trainer.checkpoint.writer import Unwritten
        from trainer.faults.full_disk import ToldElsewhere, of_a_full_disk, said_of_disk
        from trainer.loop import Failed
        from trainer.run import Refused, Unready

        if error in self._told or isinstance(error, ToldElsewhere):
            return
        if of_a_full_disk(error) and any(map(of_a_full_disk, self._told)):
            return  # what is closed on the way out meets the same disk
        self._told.append(error)
        if isinstance(error, Refused):
            complain(self.script, error)
        elif isinstance(error, Unready):  # every rank tells it, because perhaps only this one has met it
            print(f"{self.script}: {error}", file=sys.stderr, flush=True)
        elif isinstance(error, Unwritten) or of_a_full_disk(error):
            words = " ".join(said_of_disk(error, self.output).split())
            print(f"{self.script}: {words}", file=sys.stderr, flush=True)
        elif not isinstance(error, Failed):  # a run that failed has said why itself
            print("".join(traceback.format_exception(error)), file=sys.stderr, end="", flush=True)
        last = threading.Timer(GIVE_UP_S, os._exit, (status_of_training(error),))  # in case the way out hangs
        last.daemon = True
        last.start()
        self.explain(error)


def status_of_training(error: BaseException) -> int:
    """The exit status of a training that an error has ended."""
    from trainer.loop import Failed
    from trainer.run import Refused

    return REFUSED if isinstance(error, Refused | Failed) else FAILED
