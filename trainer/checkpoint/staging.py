"""Host memory that a save is written to first, so that training waits for the copy to memory only.

    STAGING/vidtwin-0123456789abcdef/rank-00000/    the files of a rank that are not on the disk yet

The folder's name stands for the run's output directory. So a start removes what a killed run has left in memory, and
nothing of another run. Linux keeps the files of /dev/shm in memory (tmpfs), and they count as memory of the job.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint.shared_disks import SharedDisks, find_shared_disks
from trainer.distributed import Ranks
from trainer.engine.free_memory import available, memory_groups

FACTOR, CONSTANT = 1.02, 2**20
"""A rank's files take at most FACTOR x the bytes of its tensors + CONSTANT; the rest is names, shapes and settings."""
TRANSIENT = 1.5
"""A tensor of a GPU lies in host memory a second time while it is written; the largest are a third of all."""


class Staging:
    """The part of the host's memory through which one run saves. Every rank makes every call.

    Args:
        folder: `checkpoint.staging`; empty where saves go straight to the disk.
        output: the run's output directory, which exists.
        say: prints a line.
    """

    def __init__(self, folder: str, output: Path, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.ranks, self.say = ranks, say
        self.folder = Path(folder) if folder else None
        self.root = Path(folder) / f"vidtwin-{_digest(output)}"
        self.mine = self.root / f"rank-{ranks.rank:05d}"
        self._begun = self._said = False
        self._groups: SharedDisks | None = None
        if all(ranks.gather(self.folder is not None and os.access(self.folder, os.W_OK | os.X_OK))):
            self._groups = find_shared_disks(ranks, Path(folder))

    def has_room(self, save: int, loader: int) -> bool:
        """Whether memory has room for one save, the same on every rank. Where it has none, a line says why.

        Args:
            save: bytes of the tensors that this rank saves.
            loader: bytes that this rank's data workers may need besides.
        """
        if self.folder is None:
            return False
        reasons = [reason for reason in self.ranks.gather(self._want(save, loader)) if reason]
        reason = reasons[0] if reasons else ""
        if reason and not self._said and self.ranks.is_main:
            self.say(
                f"{reason}; so training waits until each save is on the disk. An empty checkpoint.staging= "
                "does the same without this line"
            )
        self._said = bool(reason)
        return not reason

    def _want(self, save: int, loader: int) -> str:
        """Why this rank's node has no room; empty where it has."""
        needs = self.ranks.gather(int(FACTOR * save) + CONSTANT + loader)
        if self._groups is None:
            return f"checkpoint.staging={self.folder} is not a folder that the ranks can write on every node"
        need = sum(needs[rank] for rank in self._groups.mine)
        left, what = free_bytes(self.folder) if self.folder is not None else (0, "")
        if left >= need:
            return ""
        ranks = len(self._groups.mine)
        return (
            f"{what} has no room for a save of the node's {ranks} {'rank' if ranks == 1 else 'ranks'} and their data "
            f"workers, {need / 1e9:.2g} GB ({left / 1e9:.2g} GB are free)"
        )

    def prepare(self) -> Path:
        """A new folder for this rank's files of one save; all ranks have released those of the save before."""
        with suppress(FileExistsError):
            self.root.mkdir(mode=0o700)
        if self.root.is_symlink() or self.root.stat().st_uid != os.geteuid():
            raise PermissionError(
                errno.EPERM, "belongs to another user; set checkpoint.staging to a folder of your own", str(self.root)
            )
        self.mine.mkdir()
        return self.mine

    def release(self) -> None:
        """Give this rank's memory back; each rank calls it by itself. The last rank removes the run's folder."""
        if self.mine.is_dir():
            shutil.rmtree(self.mine, ignore_errors=True)  # after an error the thread may still be at work in it
            with suppress(OSError):  # other ranks' files are in it
                self.root.rmdir()

    def remove_leftovers(self) -> None:
        """Remove what a killed run of the same output has left in memory. Only the first call does so.

        Later, what lies there is of this run, and each rank removes its own.

        Raises:
            ValueError: something of that name cannot be removed, such as another user's; raised on every rank.
        """
        if self._begun:
            return
        self._begun = True
        keeps = self._groups is not None and self._groups.is_keeper
        problems = [text for text in self.ranks.gather(self._remove() if keeps else "") if text]
        if problems:
            raise ValueError(problems[0])

    def _remove(self) -> str:
        """Remove the run's folder with all that is in it; where that fails, why, with the remedy."""
        try:
            if self.root.is_dir():
                if any(path.is_file() for path in self.root.rglob("*")):
                    self.say(f"removing {self.root}, which a save that was cut off has left in memory")
                shutil.rmtree(self.root)
        except OSError as error:
            return (
                f"checkpoint.staging={self.folder}: {self.root} cannot be removed ({error.strerror or error}); remove "
                "it, or set checkpoint.staging to a folder of your own"
            )
        return ""


def _digest(output: Path) -> str:
    """16 digits for an output directory: its path, and its place on its disk, because containers share path names."""
    found = output.stat()
    return hashlib.sha256(f"{output.resolve()}:{found.st_dev}:{found.st_ino}".encode()).hexdigest()[:16]


def free_bytes(folder: Path) -> tuple[int, str]:
    """How many bytes more may lie in a folder in memory, and what it is that sets the limit, in words."""
    room = os.statvfs(folder)
    limits = [(room.f_bavail * room.f_frsize, str(folder)), (int(available() / TRANSIENT), "the node's memory")]
    limits += [(int(left / TRANSIENT), f"the job's memory ({group})") for group, left in memory_groups()]
    return min(limits)
