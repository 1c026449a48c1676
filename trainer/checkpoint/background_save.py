"""A save whose files are in memory: a thread of each rank copies them to the disk, then the marker is written.

The threads take part in no collective call, because such a call could meet another one of the main threads. The main
threads ask each other between two steps how far the threads are (`advance`). So there are two parts:

    1. each rank copies its own files, flushes and digests them;
    2. when all ranks have done that, they exchange the digests, and one rank of each disk writes the marker.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from trainer.checkpoint.background import Task
from trainer.checkpoint.files import Files, copy_and_digest, names_in
from trainer.distributed import Ranks


class SaveFailed(RuntimeError):
    """A thread of some rank could not write its part of a checkpoint; the message says why."""


class BackgroundSave:
    """One save on its way to the disk. Every rank makes every call.

    Args:
        source: the folder in memory with this rank's files; they are removed from it as they are copied.
        directory: the checkpoint, which exists on every disk.
        complete: what one rank of each disk does with the digests of all files: it writes the marker.
    """

    def __init__(self, ranks: Ranks, source: Path, directory: Path, complete: Callable[[Files], None]) -> None:
        self.ranks, self._complete = ranks, complete
        self.files: Files | None = None
        self._copying: Task[Files] = Task(partial(copy_files, source, directory), "checkpoint-copy")
        self._completing: Task[None] | None = None

    def advance(self, wait: bool) -> bool:
        """Begin the next part where all ranks have ended theirs. It costs one small exchange between the ranks.

        Args:
            wait: return only when the checkpoint is complete.
        Returns:
            Whether the checkpoint is complete; the same on every rank.
        Raises:
            SaveFailed: raised on every rank.
        """
        while self._completing is None:
            if not self._all_ended(self._copying, wait):
                return False
            parts = self.ranks.gather(self._copying.result)
            self.files = {name: entry for part in parts for name, entry in sorted(part.items())}
            self._completing = Task(partial(self._complete, self.files), "checkpoint-marker")
            if not wait:
                return False
        return self._all_ended(self._completing, wait)

    def _all_ended(self, task: Task[Files] | Task[None], wait: bool) -> bool:
        if wait:
            task.wait()
        ended, failed = self.ranks.total(task.ended, task.error is not None)
        if failed:
            task.wait()
            errors = self.ranks.gather(f"rank {self.ranks.rank}: {task.error}" if task.error else "")
            raise SaveFailed(next(error for error in errors if error)) from task.error
        return ended == self.ranks.world_size


def copy_files(source: Path, directory: Path) -> Files:
    """Move every file below `source` to the same place below `directory`; their sizes and digests."""
    files = {}
    for name in sorted(names_in(source)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        files[name] = copy_and_digest(source / name, directory / name)
        (source / name).unlink()
    return files
