"""A save whose files are in memory: a thread of each rank brings them to the disk, then one rank writes the marker.

The threads talk to each other through a process group of their own, which no main thread uses: collective calls of two
threads in one group could meet each other in another order on each rank. So a checkpoint becomes complete although the
main threads are in a long step, or hang. The main threads only ask each other between two steps whether the threads
have ended (`ended`), so that all ranks go on with the upload, or end with an error, after the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from trainer.checkpoint.background import Task
from trainer.checkpoint.files import Files, copy_and_digest, names_in
from trainer.distributed import Ranks

T = TypeVar("T")


class SaveFailed(RuntimeError):
    """A thread of some rank could not write its part of a checkpoint; the message says why."""


class BackgroundSave:
    """One save on its way to the disk. Every rank makes every call.

    Args:
        ranks: of the run, for the main threads.
        threads: the same ranks with a group of their own, for the threads.
        source: the folder in memory with this rank's files; they are removed from it as they are copied.
        directory: the checkpoint, which exists on every disk.
        complete: called on each rank with the digests of all files, when these have reached the disks; it writes the
            marker on one rank of each disk.
    """

    def __init__(
        self, ranks: Ranks, threads: Ranks, source: Path, directory: Path, complete: Callable[[Files], None]
    ) -> None:
        self.ranks = ranks
        self._task: Task[Files] = Task(partial(_bring, threads, source, directory, complete), "checkpoint-save")

    def ended(self, wait: bool) -> bool:
        """Whether the checkpoint is complete; the same on every rank. It costs one small exchange between the ranks.

        Args:
            wait: return only when it is complete.
        Raises:
            SaveFailed: raised on every rank.
        """
        if wait:
            self._task.wait()
        ended, failed = self.ranks.total(self._task.ended, self._task.error is not None)
        if failed:
            self._task.wait()
            error = self._task.error
            of_this_rank = error is not None and not isinstance(error, SaveFailed)
            causes = self.ranks.gather(f"rank {self.ranks.rank}: {error}" if of_this_rank else "")
            raise SaveFailed(next(cause for cause in causes if cause)) from error
        return ended == self.ranks.world_size

    @property
    def files(self) -> Files:
        """The sizes and digests of all ranks' files; only of a complete checkpoint."""
        return self._task.result


def _bring(threads: Ranks, source: Path, directory: Path, complete: Callable[[Files], None]) -> Files:
    """What the thread of each rank does."""
    mine = _together(threads, partial(copy_files, source, directory))
    files = {name: entry for part in threads.gather(mine) for name, entry in sorted(part.items())}
    _together(threads, partial(complete, files))
    return files


def _together(threads: Ranks, work: Callable[[], T]) -> T:
    """Do this rank's work, and wait until every rank has done its own.

    Raises:
        Exception: the error of this rank's work.
        SaveFailed: another rank's work raised an error.
    """
    done: list[T] = []
    error: Exception | None = None
    try:
        done.append(work())
    except Exception as raised:  # noqa: BLE001  (whatever it is, the other ranks' threads must hear of it first)
        error = raised
    failed = [rank for rank, well in enumerate(threads.gather(error is None)) if not well]
    if error is not None:
        raise error
    if failed:
        raise SaveFailed(f"rank {failed[0]} could not write its files")
    return done[0]


def copy_files(source: Path, directory: Path) -> Files:
    """Move every file below `source` to the same place below `directory`; their sizes and digests."""
    files = {}
    for name in sorted(names_in(source)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        files[name] = copy_and_digest(source / name, directory / name)
        (source / name).unlink()
    return files
